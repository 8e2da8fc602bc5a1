"""The paper's numbers: Pei, Han, Gu, arXiv 2503.21774."""

TABLE1 = {  # training-free, stability, solver-aware, global error
    "AYS": "✓✕✓✕", "GITS": "✓✓✕✕", "DM": "✓✓✕✕", "LD3": "✕✓✓✓", "OSS": "✓✓✓✓",
}  # fmt: skip
TABLE2 = {  # steps: (EDM, DDIM, flow matching), ImageNet-64, PSNR
    "naive": {
        50: (33.71, 34.31, 31.78),
        20: (25.76, 26.12, 23.97),
        10: (20.83, 20.89, 19.00),
        5: (16.38, 15.96, 15.69),
    },
    "OSS": {20: (28.21, 28.07, 28.51), 10: (22.88, 22.79, 23.02), 5: (18.41, 18.05, 18.53)},
}
TABLE3 = {  # teacher steps: (DDIM teacher, OSS, OSS-ave)
    100: (37.97, 27.04, 26.41), 200: (44.24, 28.07, 26.47), 500: (52.93, 27.11, 26.47), 800: (57.30, 27.12, 26.48),
    1000: (None, 27.13, 26.48),
}  # fmt: skip
TABLE4 = {"x_t": 18.54, "x0": 22.45, "features of x0": 9.91, "perceptual": 18.27}  # Inception-V3's features
TABLE5 = {"uniform": (52.73, 24.53), "searched": (41.96, 7.89)}  # FID on ImageNet-256, without and with tuning
TABLE6 = {  # ImageNet-64, LSUN-Bed-256, FFHQ-64, MSCOCO-512, 5 and 10 steps each
    "EDM": ((17.72, 22.33), (15.60, 19.61), (18.68, 23.24), (13.43, 15.45)),
    "DDIM": ((17.69, 22.22), (15.39, 20.18), (18.37, 23.57), (12.31, 14.58)),
    "FM": ((17.80, 22.47), (14.43, 18.23), (17.72, 21.31), (11.90, 13.51)),
    "DM": ((17.39, 20.50), (18.90, 20.67), (19.79, 22.69), (13.50, 14.73)),
    "GITS": ((16.29, 19.40), (11.58, 13.55), (20.46, 25.20), (10.60, 11.07)),
    "OSS-ave": ((17.94, 22.47), (16.51, 21.25), (20.56, 25.21), (14.10, 16.45)),
}
TABLE7 = {  # GenEval on Flux.1-dev: (steps, overall)
    "Flow matching, 100 steps": 0.649, "Flow matching": 0.590, "DDIM": 0.623, "GITS": 0.604, "DM": 0.643,
    "OSS-ave": 0.645,
}  # fmt: skip
TEACHERS = {"edm": 0, "ddim": 1, "flow": 2}  # columns of Table 2
