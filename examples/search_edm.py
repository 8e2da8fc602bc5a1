"""Schedules for a network of NVlabs/edm (ImageNet-64, FFHQ-64, ...).

The repository ships pickles, which run code of their own when they are loaded. Nothing here loads one: name a function
that returns the network, such as in my_edm.py, with the published weights as safetensors (README.md beside this file),

    from safetensors.torch import load_file
    from training.networks import EDMPrecond
    def network():
        net = EDMPrecond(64, 3, label_dim=1000, model_type="DhariwalUNet")
        net.load_state_dict(load_file("edm-imagenet-64x64-cond-adm.safetensors"))
        return net

    python examples/search_edm.py --repo edm --network my_edm:network
    python examples/search_edm.py --tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from example_common import compare, imported, parse, parser, ready, search
from tiny_networks import EDMNet

from oss_ext.integrations import edm

GRID = "edm"


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, "NVlabs/edm", checkpoint="not used: see --network", samples=32)
    made.add_argument(
        "--network", metavar="MODULE:FUNCTION", help="returns the network; the current folder is searched"
    )
    args = parse(made, argv, "repo", "network")
    if args.tiny:
        net = ready(EDMNet(), args)
    else:
        sys.path.insert(0, str(Path.cwd()))
        net = ready(imported(args.network)(), args)

    def draw(count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        noise = torch.randn(count, net.img_channels, net.img_resolution, net.img_resolution, device=args.device)
        if not net.label_dim:
            return noise, None
        labels = torch.eye(net.label_dim, device=args.device)[torch.randint(net.label_dim, (count,))]
        return noise, {"class_labels": labels}

    model = edm.denoiser(net)
    noise, cond = draw(args.samples)
    result = search(args, model, noise, cond, grid=GRID, network=args.network)
    compare(args, model, result, *draw(args.show), grid=GRID)


if __name__ == "__main__":
    main()
