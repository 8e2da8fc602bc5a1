"""Schedules for LSUN-Bedroom-256 (or Cat, Horse) of openai/guided-diffusion.

    python examples/search_lsun.py --repo guided-diffusion --checkpoint lsun_bedroom.safetensors
    python examples/search_lsun.py --tiny

The checkpoint is the published one as safetensors (README.md beside this file). With --solver euler --integer the
schedule runs in the repository's own DDIM loop: the timesteps that it wants are printed.
"""

from __future__ import annotations

import torch
from example_common import compare, parse, parser, ready, search, weights
from tiny_networks import UNet
from torch import nn

from oss_ext.integrations import guided_diffusion

GRID = "ddim"
BEDROOM = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "attention_resolutions": "32,16,8",
    "num_head_channels": 64,
    "learn_sigma": True,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "dropout": 0.1,
}


def load(args) -> nn.Module:
    from guided_diffusion.script_util import create_model

    net = create_model(**BEDROOM, use_fp16=args.fp16)
    net.load_state_dict(weights(args.checkpoint))
    if args.fp16:
        net.convert_to_fp16()
    return net


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, "openai/guided-diffusion", checkpoint="lsun_bedroom.safetensors")
    made.add_argument("--fp16", action="store_true", help="the repository's half precision")
    made.add_argument("--integer", action="store_true", help="whole timesteps only")
    args = parse(made, argv, "repo", "checkpoint")
    net = ready(UNet() if args.tiny else load(args), args)
    size = 8 if args.tiny else BEDROOM["image_size"]

    model = guided_diffusion.denoiser(net, clip_denoised=True)
    noise = torch.randn(args.samples, 3, size, size, device=args.device)
    result = search(args, model, noise, grid=GRID, integer=args.integer, checkpoint=str(args.checkpoint))
    if args.integer and args.solver == "euler":
        print("use_timesteps:", sorted(guided_diffusion.use_timesteps(result.schedule)))
    fresh = torch.randn(args.show, 3, size, size, device=args.device)
    compare(args, model, result, fresh, grid=GRID)


if __name__ == "__main__":
    main()
