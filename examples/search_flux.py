"""Schedules for FLUX.1 (black-forest-labs/flux).

    python examples/search_flux.py --repo flux --checkpoint flux1-dev.safetensors --prompts prompts.txt
    python examples/search_flux.py --tiny

Prompts, one a line, are embedded by the repository's own encoders, which transformers takes from its cache or fetches;
--embeddings FILE.safetensors with txt [n, L, 4096] and vec [n, 768] does without them. --vae ae.safetensors decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from example_common import compare, embeddings, parse, parser, ready, rows_in_turn, search
from safetensors.torch import load_file
from tiny_networks import TINY_TEXT, Flux
from torch import Tensor, nn

from oss_ext.integrations import flux


def load(args) -> nn.Module:
    from flux.model import Flux as Repository
    from flux.util import configs

    with torch.device("meta"):
        net = Repository(configs[args.model].params)
    net.load_state_dict(load_file(args.checkpoint, device=str(args.device)), assign=True)
    return net


def embed(args) -> dict[str, Tensor]:
    """txt and vec of every prompt."""
    from flux.util import load_clip, load_t5

    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    t5, clip = load_t5(args.device, max_length=256 if args.model == "flux-schnell" else 512), load_clip(args.device)
    with torch.no_grad():
        return {"txt": t5(prompts), "vec": clip(prompts)}


def decoder(args, rows: int, columns: int) -> Callable[[Tensor], Tensor] | None:
    if args.vae is None:
        return None
    from flux.modules.autoencoder import AutoEncoder
    from flux.util import configs

    vae = AutoEncoder(configs[args.model].ae_params)
    vae.load_state_dict(load_file(args.vae))
    vae = ready(vae, args)

    @torch.no_grad()
    def decode(packed: Tensor) -> Tensor:
        patches = packed.float().unflatten(1, (rows, columns)).unflatten(3, (-1, 2, 2))
        return vae.decode(patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3))

    return decode


def places(count: int, rows: int, columns: int) -> Tensor:
    """img_ids of the repository's `prepare`: 0, row, column."""
    at = torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(columns).float())
    return at.expand(count, -1, 3)


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, "black-forest-labs/flux", checkpoint="flux1-dev.safetensors", samples=8, show=2)
    made.add_argument("--model", default="flux-dev", help="flux-dev, flux-schnell, flux-dev-krea")
    made.add_argument("--prompts", type=Path)
    made.add_argument("--embeddings", type=Path)
    made.add_argument("--vae", type=Path)
    made.add_argument("--guidance", type=float, default=3.5)
    made.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    args = parse(made, argv, "repo", "checkpoint")
    if not args.tiny and args.prompts is None and args.embeddings is None:
        made.error("--prompts or --embeddings is needed without --tiny")
    rows, columns = (2, 3) if args.tiny else (math.ceil(size / 16) for size in args.size)
    if args.tiny:
        net, dtype, channels = ready(Flux(), args), torch.float32, 8
        text = {"txt": torch.randn(2, 3, TINY_TEXT, device=args.device), "vec": torch.randn(2, 5, device=args.device)}
    else:
        dtype, channels = torch.bfloat16, 64
        text = embeddings(args.embeddings, args)[0] if args.embeddings else embed(args)
        net = ready(load(args), args, dtype)

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        cond = rows_in_turn(text, count)
        cond["img_ids"] = places(count, rows, columns).to(args.device)
        cond["txt_ids"] = torch.zeros(*cond["txt"].shape[:2], 3, device=args.device)
        return torch.randn(count, rows * columns, channels, device=args.device, dtype=dtype), cond

    shifted = args.model != "flux-schnell"
    grid = f"flow:shift={flux.shift(rows * columns)}" if shifted else "flow"
    model = flux.denoiser(net, guidance=args.guidance if shifted else None)
    told = {"checkpoint": str(args.checkpoint), "guidance": args.guidance, "size": list(args.size)}
    result = search(args, model, *draw(args.samples), grid=grid, **told)
    compare(args, model, result, *draw(args.show), grid=grid, decode=decoder(args, rows, columns))


if __name__ == "__main__":
    main()
