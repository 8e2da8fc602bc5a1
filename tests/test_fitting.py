"""Fitted coefficients against torch.linalg.lstsq on the stacked samples, and what the ridge does."""

from __future__ import annotations

import pytest
import torch

from oss_ext import kernels
from oss_ext.fitting import least_squares

BATCH, NODES, DIM = 3, 6, 20


def problem(count: int, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """A basis of `count` vectors, targets, and a prior."""
    g = torch.Generator().manual_seed(seed)
    basis = [torch.randn(BATCH, NODES, DIM, generator=g, dtype=torch.float64) for _ in range(count)]
    target = torch.randn(BATCH, NODES, DIM, generator=g, dtype=torch.float64)
    return basis, target, torch.randn(NODES, NODES, count, generator=g, dtype=torch.float64)


def fit(basis: list[torch.Tensor], target: torch.Tensor, prior: torch.Tensor, ridge: float) -> torch.Tensor:
    gram, moment = kernels.gram(basis, target)
    return least_squares(gram.sum(0), moment.sum(0), prior, ridge=ridge)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_plain_least_squares(count: int) -> None:
    basis, target, prior = problem(count)
    found = fit(basis, target, prior, ridge=0.0)
    for i in range(NODES):
        columns = torch.stack([u[:, i].flatten() for u in basis], 1)
        for j in range(i + 1, NODES):
            wanted = torch.linalg.lstsq(columns, target[:, j].flatten()[:, None]).solution[:, 0]
            torch.testing.assert_close(found[i, j], wanted, rtol=1e-9, atol=1e-9)


def test_the_ridge_is_relative_to_the_prior_and_has_no_units() -> None:
    basis, target, prior = problem(2)
    ridge = 0.3
    found = fit(basis, target, prior, ridge)
    i, j = 1, 4
    columns = torch.stack([u[:, i].flatten() for u in basis], 1)
    length = columns.norm(dim=0)
    wide = torch.cat([columns, ridge**0.5 * torch.diag(length)])
    right = torch.cat([target[:, j].flatten(), ridge**0.5 * length * prior[i, j]])
    wanted = torch.linalg.lstsq(wide, right[:, None]).solution[:, 0]
    torch.testing.assert_close(found[i, j], wanted, rtol=1e-9, atol=1e-9)
    units = torch.tensor([1.0, 100.0], dtype=torch.float64)
    scaled = fit([basis[0], 100 * basis[1]], target, prior / units, ridge)
    torch.testing.assert_close(scaled * units, found, rtol=1e-9, atol=1e-9)
    above = torch.ones(NODES, NODES).triu(1).bool()
    far = fit(basis, target, prior, 1e12)
    torch.testing.assert_close(far[above], prior[above], rtol=1e-6, atol=1e-6)


def test_missing_and_parallel_vectors() -> None:
    basis, target, prior = problem(3)
    basis[2].zero_()
    found = fit(basis, target, prior, ridge=0.0)
    two = fit(basis[:2], target, prior[..., :2].contiguous(), ridge=0.0)
    above = torch.ones(NODES, NODES).triu(1).bool()
    torch.testing.assert_close(found[above][:, :2], two[above], rtol=1e-9, atol=1e-9)
    assert torch.equal(found[above][:, 2], prior[above][:, 2])
    # Two equal vectors: any split fits as well, and the one found is finite and as good.
    basis[2] = basis[1].clone()
    split = fit(basis, target, prior, ridge=0.0)
    reached = [sum(c * u[:, 1] for c, u in zip(weights, basis, strict=False)) for weights in (split[1, 3], two[1, 3])]
    torch.testing.assert_close(reached[0], reached[1], rtol=1e-6, atol=1e-6)


def test_a_state_that_is_not_reached_has_no_coefficients() -> None:
    basis, target, prior = problem(2)
    basis[0][:, 2] = torch.nan
    found = fit(basis, target, prior, ridge=1e-3)
    assert found[2].isnan().all()
    assert torch.isfinite(found[[0, 1, 3]]).all()


def test_negative_ridge() -> None:
    basis, target, prior = problem(2)
    with pytest.raises(ValueError, match="ridge: got -1"):
        fit(basis, target, prior, ridge=-1.0)
