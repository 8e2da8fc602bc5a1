"""What a caller may do to the network, bfloat16 and torch.compile, moves no backpointer beyond what precision does."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.analytic import mixture, normal
from torch import nn

from oss_ext import FlowModel, dp_search, zoo


class Net(nn.Module):
    """The velocity of a mixture, in parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(mixture(2, shape=(24,)).means.float(), requires_grad=False)

    def forward(self, x, t):
        t = t.to(x)[:, None]
        off = x[:, None] - (1 - t)[..., None] * self.means
        variance = (0.2 * (1 - t)) ** 2 + t**2
        weight = torch.softmax(-off.square().sum(-1) / (2 * variance), -1)
        mean = (weight[..., None] * (self.means + ((0.04 * (1 - t)) / variance)[..., None] * off)).sum(1)
        return (x - mean) / t


@pytest.mark.parametrize("solver", ["euler", "fitted"])
def test_bfloat16(solver):
    """The schedule found with it costs the exact network, on other noises, no more than the exact one's; backpointers
    differ only where two sources cost nearly the same."""
    exact, half = (zoo.load("photo32", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    noise, cond = exact.noise(9)
    some, its = noise[:3], {key: value[:3] for key, value in cond.items()}
    options = {"teacher_steps": 12, "candidates": 12, "solver": solver, "cond": its}
    one = dp_search(exact, some, 3, **options)
    other = dp_search(half, some.bfloat16(), 3, **options)
    assert other.teacher.dtype == torch.float32
    held, its = noise[3:], {key: value[3:] for key, value in cond.items()}
    fine = dp_search(exact, held, 1, teacher_steps=12, cond=its).teacher
    costs = [float((found.schedule.sample(exact, held, cond=its) - fine).square().mean()) for found in (one, other)]
    reached = one.values.isfinite()
    same = (one.backpointers == other.backpointers)[reached].double().mean()
    print(f"{solver}: {costs[0]:.3e}, {costs[1]:.3e} in bfloat16; {100 * same:.0f} % of the backpointers are the same")
    assert costs[1] < 1.05 * costs[0] and same > 0.9
    torch.testing.assert_close(other.values[reached], one.values[reached], rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network(backend):
    noise = normal(8, 24, dtype=torch.float32)
    wanted = dp_search(FlowModel(Net()), noise, 5, teacher_steps=40)
    compiled = torch.compile(Net(), backend=backend, dynamic=True)
    found = dp_search(FlowModel(compiled), noise, 5, teacher_steps=40)
    assert torch.equal(found.backpointers, wanted.backpointers)
    finite = wanted.values.isfinite()
    torch.testing.assert_close(found.values[finite], wanted.values[finite], rtol=1e-3, atol=1e-9)


def test_the_page_runs_as_printed(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parent.parent / "docs" / "large_searches.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    names: dict = {}
    exec(compile(block, "large_searches.md", "exec"), names)
    assert names["result"].steps == 5 and (tmp_path / "outputs" / "checkpoint.json").is_file()
