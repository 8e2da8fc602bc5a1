"""Every CUDA kernel once, over its branches, on sizes small enough for compute-sanitizer:

compute-sanitizer --tool memcheck python benchmarks/sanitize.py
"""

from __future__ import annotations

import torch

from oss_ext import kernels

# (batch, nodes, dim): short rows, odd rows, rows that split, more nodes than a tile.
SIZES = [(2, 9, 16), (1, 40, 61), (2, 37, 131), (1, 70, 4096), (1, 5, 9001)]
MANY = (97, 130, 7)  # many samples in a sum: slow to watch, so for some widths of the basis only
MANY_COUNTS = (2, 5)


# best_step: short and long rows; a run of targets, two, and several tiles; dims that end within a chunk.
STEPPED = [(3, 9, 16), (2, 40, 520), (1, 130, 1032), (1, 230, 72)]


def best_steps(generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for batch, nodes, dim in STEPPED:
            for count in (1, 2):
                rows = [torch.randn(batch, nodes, dim, device="cuda", generator=generator) for _ in range(count + 1)]
                rows[0][0, nodes // 2] = float("nan")
                *basis, target = (row.to(dtype) for row in rows)
                coefficients = torch.randn(nodes, nodes, count, device="cuda", generator=generator)
                for joint in (True, False):
                    assert kernels.best_step(basis, coefficients, target, joint=joint) is not None


def main() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for size in (*SIZES, MANY):
            batch, nodes, dim = size
            for count in MANY_COUNTS if size is MANY else range(1, kernels.MAX_BASIS + 1):
                rows = [torch.randn(batch, nodes, dim, device="cuda", generator=generator) for _ in range(count + 1)]
                *basis, target = (row.to(dtype) for row in rows)
                coefficients = torch.randn(nodes, nodes, count, device="cuda", generator=generator)
                weight = torch.rand(dim, device="cuda", generator=generator)
                own = coefficients.expand(batch, nodes, nodes, count)
                for summed in (
                    kernels.pairwise_cost(basis, coefficients, target, joint=True),
                    kernels.pairwise_cost(basis, own, target, weight=weight, sources=(1, nodes - 1), joint=True),
                ):
                    kernels.min_reduce(summed, joint=True)
                if size is MANY:
                    continue
                costs = [
                    kernels.pairwise_cost(basis, coefficients, target),
                    kernels.pairwise_cost(basis, coefficients, target, weight=weight, sources=(1, nodes - 1)),
                ]
                for cost in costs:
                    for joint in (False, True):
                        _, backpointers = kernels.min_reduce(cost, joint=joint)
                        kernels.advance(basis, coefficients, backpointers)
                kernels.gram(basis, target)
                kernels.gram(basis, target, weight=weight, sources=(1, nodes - 1))
                kernels.min_plus(costs[0].float(), 3)
    best_steps(generator)
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
