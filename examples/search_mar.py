"""One schedule for every token of MAR (LTH14/mar): searched on tokens of its first call, used for all of them.

    python examples/search_mar.py --repo mar --checkpoint mar_base.safetensors --vae kl16.safetensors
    python examples/search_mar.py --tiny

Both files are the published ones as safetensors (README.md beside this file): of the checkpoint its "model_ema", of the
VAE its "model". The repository's own loop writes .cuda() out: it wants a GPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from example_common import compare, parse, parser, ready, search, weights
from safetensors.torch import save_file
from tiny_networks import MAR
from torch import Tensor, nn

from oss_ext.integrations import mar
from oss_ext.plot import write_sheet

GRID = "ddim"
WIDTHS = {"mar_base": (6, 1024), "mar_large": (8, 1280), "mar_huge": (12, 1536)}
"""Depth and width of the head in the published checkpoints."""


def load(args) -> nn.Module:
    import models.mar as repository

    depth, width = WIDTHS[args.model]
    net = getattr(repository, args.model)(diffloss_d=depth, diffloss_w=width)
    net.load_state_dict(weights(args.checkpoint))
    return net


def decode(args, tokens: Tensor) -> Tensor:
    from models.vae import AutoencoderKL

    vae = AutoencoderKL(embed_dim=16, ch_mult=(1, 1, 2, 2, 4))
    vae.load_state_dict(weights(args.vae), strict=False)
    return ready(vae, args).decode(tokens / 0.2325)


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, "LTH14/mar", checkpoint="mar_base.safetensors", samples=256, teacher_steps=200)
    made.add_argument("--model", choices=WIDTHS, default="mar_base")
    made.add_argument("--cfg", type=float, default=2.9)
    made.add_argument("--num-iter", type=int, help="calls that draw the tokens of an image (64)")
    made.add_argument("--calls", type=int, nargs="*", default=[0], help="calls whose tokens are searched")
    made.add_argument("--vae", type=Path)
    args = parse(made, argv, "repo", "checkpoint")
    net = ready(MAR() if args.tiny else load(args), args)
    labels = torch.randint(5 if args.tiny else 1000, (8,), device=args.device)
    loop = {
        "bsz": len(labels),
        "num_iter": args.num_iter or (4 if args.tiny else 64),
        "cfg": args.cfg,
        "labels": labels,
    }

    with mar.recorded(net.diffloss) as tokens, torch.no_grad():
        net.sample_tokens(**loop)
    noise, cond = tokens.draw(args.samples, args.calls)
    model = mar.denoiser(net.diffloss.net)
    told = {"checkpoint": str(args.checkpoint), "cfg": args.cfg, "calls": args.calls}
    result = search(args, model, noise, cond, grid=GRID, **told)
    compare(args, model, result, *tokens.draw(args.show), grid=GRID)

    with mar.applied(net.diffloss, result.schedule), torch.no_grad():
        images = net.sample_tokens(**loop)
    save_file({"tokens": images.cpu().contiguous()}, args.output / "images.safetensors")
    if args.vae is not None:
        write_sheet(decode(args, images), args.output / "images.png")


if __name__ == "__main__":
    main()
