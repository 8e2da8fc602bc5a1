"""The CPU kernels for narrower instruction sets, each in a process of its own, because the choice is made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent.parent

CHECK = """
import torch
from helpers.kernel_inputs import DTYPES, Case, assert_cost_close
from oss_ext import kernels, reference
for dtype in DTYPES:
    sizes = [(2, 5, 3, 1), (1, 67, 33, 2), (2, 9, 1029, 3), (1, 4, 20_001, 4), (1, 19, 21, 5), (1, 21, 1100, 6)]
    for batch, nodes, dim, count in sizes:
        case = Case(batch, nodes, dim, count, dtype, "sliced", weighted=count != 2, seed=dim)
        (basis, coefficients, target), keywords = case.cost_arguments()
        assert_cost_close(kernels.pairwise_cost(basis, coefficients, target, **keywords), case)
        del keywords["target_weight"]
        for got, wanted in zip(kernels.gram(basis, target, **keywords), reference.gram(basis, target, **keywords)):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
        seeded = torch.Generator().manual_seed(dim)
        pointers = torch.randint(-1, nodes, (batch, nodes), dtype=torch.int32, generator=seeded)
        got, wanted = (module.advance(basis, coefficients, pointers) for module in (kernels, reference))
        # Sums of products that cancel: rounded against the size of what is summed, then to the dtype.
        size = reference.advance([vectors.abs() for vectors in basis], coefficients.abs(), pointers).double()
        working = torch.float64 if dtype == torch.float64 else torch.float32
        room = count * torch.finfo(working).eps * size + 2 * torch.finfo(dtype).eps * wanted.double().abs()
        assert torch.equal(got.isnan(), wanted.isnan())
        assert bool(((got.double() - wanted.double()).abs() <= room)[~wanted.isnan()].all()), (dtype, dim)
    if dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)[None, None]
        got = kernels.advance([every], torch.ones(1, 1, 1), torch.zeros(1, dtype=torch.int32))
        assert torch.equal(got.nan_to_num(7.0), every.nan_to_num(7.0)) and torch.equal(got.isnan(), every.isnan())
case = Case(1, 20, 999, 2, seed=1)
positional, keywords = case.cost_arguments()
for cost in kernels.pairwise_cost(*positional, **keywords)[0]:
    print(*(x.hex() for x in cost.tolist()))
"""


def run(tmp_path: Path, isa: str | None) -> str:
    """Checks against the oracle and returns the bits of some costs."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    if isa is not None:
        environment["OSS_EXT_CPU_ISA"] = isa
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_narrower_sets_agree_with_the_oracle(tmp_path: Path) -> None:
    """That the bits differ shows that the choice was heard: the lanes are added in another order."""
    capability = torch.backends.cpu.get_cpu_capability()
    narrower = {"AVX512": ["avx2", "baseline"], "AVX2": ["baseline"]}.get(capability)
    if narrower is None:
        pytest.skip(f"nothing narrower to ask for: this CPU has {capability}")
    bits = [run(tmp_path, isa) for isa in (None, *narrower)]
    assert len(set(bits)) == len(bits)
