"""Schedules for DiT-XL/2 (facebookresearch/DiT), class-conditional, with its classifier-free guidance.

    python examples/search_dit.py --repo DiT --checkpoint DiT-XL-2-256x256.safetensors --vae sd-vae-ft-mse
    python examples/search_dit.py --tiny

The checkpoint is the published one as safetensors (README.md beside this file). --vae is a folder or a name that
diffusers' AutoencoderKL.from_pretrained takes; without it latents are written and no picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from example_common import compare, parse, parser, ready, search, weights
from tiny_networks import DiT
from torch import Tensor, nn

from oss_ext.integrations import dit

GRID = "ddim"


def load(args) -> nn.Module:
    from models import DiT_models

    net = DiT_models[args.model](input_size=args.image_size // 8, num_classes=dit.NULL_LABEL)
    net.load_state_dict(weights(args.checkpoint))
    return net


def decoder(args) -> Callable[[Tensor], Tensor] | None:
    if args.vae is None:
        return None
    from diffusers.models import AutoencoderKL

    vae = ready(AutoencoderKL.from_pretrained(args.vae), args)
    return lambda latents: vae.decode(latents / 0.18215).sample


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, "facebookresearch/DiT", checkpoint="DiT-XL-2-256x256.safetensors", samples=16)
    made.add_argument("--model", default="DiT-XL/2")
    made.add_argument("--image-size", type=int, default=256)
    made.add_argument("--cfg-scale", type=float, default=1.5)
    made.add_argument("--vae")
    args = parse(made, argv, "repo", "checkpoint")
    classes = 5 if args.tiny else dit.NULL_LABEL
    net = ready(DiT(classes=classes) if args.tiny else load(args), args)
    size = 4 if args.tiny else args.image_size // 8

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(count, 4, size, size, device=args.device)
        return noise, {"y": torch.randint(classes, (count,), device=args.device)}

    model = dit.denoiser(net, cfg_scale=args.cfg_scale, null_label=classes)
    told = {"checkpoint": str(args.checkpoint), "cfg_scale": args.cfg_scale}
    result = search(args, model, *draw(args.samples), grid=GRID, **told)
    compare(args, model, result, *draw(args.show), grid=GRID, decode=decoder(args))


if __name__ == "__main__":
    main()
