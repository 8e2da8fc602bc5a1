"""Fitted coefficients against torch.linalg.lstsq on the stacked samples, what the ridge does, and how one is chosen."""

from __future__ import annotations

import pytest
import torch

from oss_ext import kernels
from oss_ext.fitting import RIDGES, cross_validated, least_squares

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


# --- the ridge of least error on samples left out ---


def folded(count: int, batch: int, folds: int, noise: float, seed: int):
    """A basis [batch, ...] of `count` vectors, targets near some combination of them, a prior, and the statistics of
    `folds` folds: sample b is in fold b % folds."""
    g = torch.Generator().manual_seed(seed)
    basis = [torch.randn(batch, NODES, 3, generator=g, dtype=torch.float64) for _ in range(count)]
    prior = torch.randn(NODES, NODES, count, generator=g, dtype=torch.float64)
    true = prior + 0.3 * torch.randn(NODES, NODES, count, generator=g, dtype=torch.float64)
    target = sum(true[1, :, p, None] * u[:, 1:2] for p, u in enumerate(basis))
    target = target + noise * torch.randn(batch, NODES, 3, generator=g, dtype=torch.float64)
    gram, moment = kernels.gram(basis, target)
    parts = [torch.stack([each[fold::folds].sum(0) for fold in range(folds)]) for each in (gram, moment)]
    return basis, target, prior, parts


def augmented(columns: torch.Tensor, right: torch.Tensor, prior: torch.Tensor, ridge: float) -> torch.Tensor:
    """argmin_c |columns c - right|^2 + ridge |D (c - prior)|^2 with D the lengths of the columns."""
    length = columns.norm(dim=0)
    wide = torch.cat([columns, ridge**0.5 * torch.diag(length)])
    return torch.linalg.lstsq(wide, torch.cat([right, ridge**0.5 * length * prior])[:, None]).solution[:, 0]


@pytest.mark.parametrize("folds", [2, 3, 4])
@pytest.mark.parametrize(("noise", "seed"), [(0.01, 0), (0.3, 1), (1.0, 2), (3.0, 3), (10.0, 4)])
def test_cross_validation_is_brute_force(folds: int, noise: float, seed: int) -> None:
    batch, count = 6, 4
    basis, target, prior, (gram, moment) = folded(count, batch, folds, noise, seed)
    coefficients, chosen = cross_validated(gram, moment, prior)
    assert coefficients.shape == (NODES, NODES, count) and chosen.shape == (NODES, NODES)
    fold = torch.arange(batch) % folds
    for i in range(NODES):
        rows = torch.stack([u[:, i] for u in basis], -1)  # [batch, D, P]
        for j in range(i + 1, NODES):
            errors = []
            for ridge in RIDGES:
                error = 0.0
                for left_out in range(folds):
                    kept = fold != left_out
                    fit = augmented(rows[kept].flatten(0, 1), target[kept, j].flatten(), prior[i, j], ridge)
                    error += float((rows[~kept] @ fit - target[~kept, j]).square().sum())
                errors.append(error)
            assert float(chosen[i, j]) == RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]
            wanted = augmented(rows.flatten(0, 1), target[:, j].flatten(), prior[i, j], float(chosen[i, j]))
            torch.testing.assert_close(coefficients[i, j], wanted, rtol=1e-8, atol=1e-8)


def test_not_every_step_wants_the_same_ridge() -> None:
    above = torch.ones(NODES, NODES).triu(1).bool()
    picked = set()
    for noise in (0.01, 0.3, 1.0, 10.0):
        _, _, prior, (gram, moment) = folded(4, 6, 3, noise, seed=1)
        picked |= set(cross_validated(gram, moment, prior)[1][above].tolist())
    assert len(picked) >= 4


def test_the_error_of_a_fold_is_the_distance_less_what_no_ridge_changes() -> None:
    """The identity that the choice rests on: |sum_p C_p u_p - y|^2 - |y - u_0|^2 from the statistics alone."""
    basis, target, prior, (gram, moment) = folded(3, 6, 2, 0.5, seed=7)
    i, j, weights = 1, 4, prior[1, 4]
    beyond = weights - torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for fold in range(2):
        own = slice(fold, None, 2)
        landed = sum(c * u[own, i] for c, u in zip(weights, basis, strict=True))
        wanted = (landed - target[own, j]).square().sum() - (target[own, j] - basis[0][own, i]).square().sum()
        found = beyond @ gram[fold, i] @ beyond - 2 * beyond @ moment[fold, i, j]
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_one_ridge_to_choose_from_is_that_ridge() -> None:
    _, _, prior, (gram, moment) = folded(3, 6, 3, 0.5, seed=8)
    coefficients, chosen = cross_validated(gram, moment, prior, ridges=[0.02])
    above = torch.ones(NODES, NODES).triu(1).bool()
    assert bool((chosen == 0.02).all())
    wanted = least_squares(gram.sum(0), moment.sum(0), prior, ridge=0.02)
    torch.testing.assert_close(coefficients[above], wanted[above], rtol=1e-12, atol=1e-12)


def test_nothing_to_learn_wants_the_largest_ridge_and_no_noise_the_smallest() -> None:
    """Of the steps from node 1, whose basis the targets are made of."""
    for noise, wanted in ((1e-6, min(RIDGES)), (30.0, max(RIDGES))):
        _, _, prior, (gram, moment) = folded(4, 6, 3, noise, seed=9)
        picks = cross_validated(gram, moment, prior)[1][1, 2:].tolist()
        assert picks.count(wanted) > len(picks) / 2, (noise, picks)


@pytest.mark.parametrize("samples", [2, 4, 8])
def test_few_samples_are_fitted_better_than_with_next_to_no_ridge(samples: int) -> None:
    """Error of a step on samples that neither choice has seen; three numbers a sample, four coefficients, and targets
    that are as much noise as anything. Mean over problems."""
    ratios = []
    for seed in range(20):
        basis, target, prior, _ = folded(4, 64, 2, 1.0, seed)
        gram, moment = kernels.gram([u[:samples].contiguous() for u in basis], target[:samples].contiguous())
        folds = [torch.stack([each[fold::2].sum(0) for fold in range(2)]) for each in (gram, moment)]
        errors = []
        for weights in (
            cross_validated(*folds, prior)[0],
            least_squares(gram.sum(0), moment.sum(0), prior, ridge=1e-6),
        ):
            landed = torch.einsum("ijp,pbid->bijd", weights, torch.stack(basis)[:, samples:])
            off = (landed - target[samples:, None]).square().mean((0, 3))
            errors.append(float(off[1, 2:].mean()))
        ratios.append(errors[0] / errors[1])
    mean = float(torch.tensor(ratios).log().mean().exp())
    assert mean < 1, ratios
    if samples == 2:
        assert mean < 0.7, "this is a case where overfitting shows"


def test_one_fold_cannot_be_validated() -> None:
    _, _, prior, (gram, moment) = folded(3, 6, 2, 0.5, seed=1)
    with pytest.raises(ValueError, match="gram: got statistics of 1 folds, wanted at least 2"):
        cross_validated(gram[:1], moment[:1], prior)
    with pytest.raises(ValueError, match="ridge: got -1"):
        cross_validated(gram, moment, prior, ridges=[1.0, -1.0])
