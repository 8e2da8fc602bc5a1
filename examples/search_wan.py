"""Schedules for Wan 2.1, text to video (Wan-Video/Wan2.1).

    python examples/search_wan.py --repo Wan2.1 --checkpoint Wan2.1-T2V-14B --prompts prompts.txt --size 480 832
    python examples/search_wan.py --tiny

--checkpoint is the published folder: the transformer is safetensors, the text encoder a pickle that the repository's
own class loads. --embeddings FILE.safetensors with context [n, L, 4096] and null_context [1, L, 4096] does without it.
Latents are written; the repository's WanVAE decodes them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from example_common import compare, embeddings, parse, parser, ready, rows_in_turn, search
from tiny_networks import TINY_TEXT, Wan
from torch import Tensor

from oss_ext.integrations import wan
from oss_ext.integrations.video import cost_weight


def embed(args) -> tuple[Tensor, Tensor]:
    """(context of every prompt, that of the repository's negative prompt), filled up to one length."""
    from wan.configs import t2v_14B as config  # the same text encoder for every size
    from wan.modules.t5 import T5EncoderModel

    encoder = T5EncoderModel(
        text_len=config.text_len,
        dtype=config.t5_dtype,
        device=args.device,
        checkpoint_path=str(args.checkpoint / config.t5_checkpoint),
        tokenizer_path=str(args.checkpoint / config.t5_tokenizer),
    )
    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    with torch.no_grad():
        embedded = encoder([*prompts, config.sample_neg_prompt], args.device)
    context = wan.contexts(embedded).float()
    return context[:-1], context[-1:]


def main(argv: list[str] | None = None) -> None:
    made = parser(
        __doc__, "Wan-Video/Wan2.1", checkpoint="folder Wan2.1-T2V-14B or -1.3B", samples=2, show=1, batch_size=1
    )
    made.add_argument("--prompts", type=Path)
    made.add_argument("--embeddings", type=Path)
    made.add_argument("--guidance", type=float, default=5.0)
    made.add_argument("--shift", type=float, default=wan.SHIFT)
    made.add_argument("--frames", type=int, default=81)
    made.add_argument("--size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"))
    made.add_argument("--cost-frames", type=int, help="latent frames that the cost looks at; the paper: 4 (all)")
    args = parse(made, argv, "repo", "checkpoint")
    if not args.tiny and args.prompts is None and args.embeddings is None:
        made.error("--prompts or --embeddings is needed without --tiny")
    if args.tiny:
        net, shape = ready(Wan(), args), (4, 3, 4, 4)
        context, null = torch.randn(2, 5, TINY_TEXT, device=args.device), torch.randn(1, 5, TINY_TEXT)
    else:
        from wan.modules.model import WanModel

        if args.embeddings:
            held, nulls = embeddings(args.embeddings, args)
            context, null = held["context"], nulls["context"]
        else:
            context, null = embed(args)
        net = ready(WanModel.from_pretrained(args.checkpoint), args)
        shape = (16, (args.frames - 1) // 4 + 1, args.size[0] // 8, args.size[1] // 8)

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.randn(count, *shape, device=args.device), rows_in_turn({"context": context}, count)

    grid = f"flow:shift={args.shift}"
    autocast = torch.bfloat16 if args.device.type == "cuda" else None
    model = wan.denoiser(net, guidance=args.guidance, null={"context": null}, autocast=autocast)
    told = {
        "checkpoint": str(args.checkpoint),
        "guidance": args.guidance,
        "latents": list(shape),
        "cost_frames": args.cost_frames,
    }
    weight = cost_weight(shape, frames=args.cost_frames) if args.cost_frames else None
    result = search(args, model, *draw(args.samples), grid=grid, weight=weight, **told)
    compare(args, model, result, *draw(args.show), grid=grid)


if __name__ == "__main__":
    main()
