"""Schedules for Open-Sora 1.2 (hpcaitech/Open-Sora, tag v1.2.0).

    python examples/search_open_sora.py --repo Open-Sora --checkpoint OpenSora-STDiT-v3 --prompts prompts.txt
    python examples/search_open_sora.py --tiny

--checkpoint is the published folder: config.json, model.safetensors. Prompts are embedded by the repository's T5;
--embeddings FILE.safetensors with y [n, 1, 300, 4096] and mask [n, 300] does without it. Latents are written; the
repository's OpenSoraVAE_V1_2 decodes them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from example_common import compare, embeddings, parse, parser, ready, rows_in_turn, search
from safetensors.torch import load_file
from tiny_networks import TINY_TEXT, STDiT3
from torch import Tensor, nn

from oss_ext.integrations import open_sora
from oss_ext.integrations.video import cost_weight


def load(args) -> nn.Module:
    from opensora.models.stdit.stdit3 import STDiT3 as Repository
    from opensora.models.stdit.stdit3 import STDiT3Config

    fast = find_spec("flash_attn") is not None
    net = Repository(STDiT3Config.from_pretrained(str(args.checkpoint), qk_norm=True, enable_flash_attn=fast))
    net.load_state_dict(load_file(args.checkpoint / "model.safetensors"))
    return net


def embed(args) -> dict[str, Tensor]:
    from opensora.models.text_encoder.t5 import T5Encoder, text_preprocessing

    prompts = [text_preprocessing(line) for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    encoder = T5Encoder("DeepFloyd/t5-v1_1-xxl", model_max_length=300, device=args.device)
    return encoder.encode(prompts)


def main(argv: list[str] | None = None) -> None:
    made = parser(
        __doc__, "hpcaitech/Open-Sora at v1.2.0", checkpoint="OpenSora-STDiT-v3", samples=2, show=1, batch_size=1
    )
    made.add_argument("--prompts", type=Path)
    made.add_argument("--embeddings", type=Path)
    made.add_argument("--guidance", type=float, default=7.0)
    made.add_argument("--frames", type=int, default=102, help="of the video, a multiple of 17: 102 is 4 s")
    made.add_argument("--fps", type=float, default=24)
    made.add_argument("--size", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    made.add_argument("--cost-frames", type=int, help="latent frames that the cost looks at; the paper: 6 (all)")
    args = parse(made, argv, "repo", "checkpoint")
    if not args.tiny and args.prompts is None and args.embeddings is None:
        made.error("--prompts or --embeddings is needed without --tiny")
    height, width = (32, 32) if args.tiny else args.size
    latent = (1 if args.frames == 1 else args.frames // 17 * 5, height // 8, width // 8)
    if args.tiny:
        net, null = ready(STDiT3(), args), torch.randn(1, 1, 4, TINY_TEXT)
        text = {"y": torch.randn(2, 1, 4, TINY_TEXT), "mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])}
        text, latent = {name: value.to(args.device) for name, value in text.items()}, (5, 4, 4)
    else:
        text = embeddings(args.embeddings, args)[0] if args.embeddings else embed(args)
        net = ready(load(args), args, torch.bfloat16)
        null = net.y_embedder.y_embedding[None, None]

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        cond = rows_in_turn(text, count)
        for name, value in (("height", height), ("width", width), ("fps", args.fps)):
            cond[name] = torch.full((count,), float(value), device=args.device)
        return torch.randn(count, 4, *latent, device=args.device), cond

    grid = f"flow:shift={open_sora.shift(args.frames, height, width)}"
    model = open_sora.denoiser(net, guidance=args.guidance, null={"y": null})
    told = {
        "checkpoint": str(args.checkpoint),
        "guidance": args.guidance,
        "latents": [4, *latent],
        "cost_frames": args.cost_frames,
    }
    weight = cost_weight((4, *latent), frames=args.cost_frames) if args.cost_frames else None
    result = search(args, model, *draw(args.samples), grid=grid, weight=weight, **told)
    compare(args, model, result, *draw(args.show), grid=grid)


if __name__ == "__main__":
    main()
