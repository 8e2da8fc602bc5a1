"""Least-squares step coefficients: the linear combination of a node's basis that lands nearest to the teacher.

No training and no gradients: normal equations from the Gram statistics of the search's samples. And the gain, where
there is one vector only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oss_ext.ranks import ALONE, Ranks
from oss_ext.sums import products, squares

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""What `cross_validated` chooses from."""
CHUNK = 2**24  # numbers multiplied at once


def least_squares(gram: Tensor, moment: Tensor, prior: Tensor, *, ridge: float) -> Tensor:
    """Coefficients C that minimise |sum_p C_p u_p - y_j|^2 + ridge |D (C - prior)|^2 for every step i -> j.

    D scales each basis vector to unit length, so that `ridge` has no units: 0 is plain least squares, and the larger
    it is, the nearer C stays to `prior`. Vectors of length zero (a history that a young path lacks) keep the prior's
    weight.

    gram: float64 [S, P, P], inner products of node i's basis, summed over the samples.
    moment: float64 [S, T, P], inner products with the teacher's state at j minus u_0, likewise (`kernels.gram`).
    prior: float64 [S, T, P], the coefficients to stay near: a solver's. ridge: >= 0.

    Returns float64 [S, T, P] on the device of `gram`; NaN where the statistics of node i are not finite.
    Raises ValueError for a negative ridge.
    """
    return _solve(gram, moment, prior, [ridge])[0]


def cross_validated(
    gram: Tensor, moment: Tensor, prior: Tensor, *, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, Tensor]:
    """`least_squares` with the ridge that does best, for each step i -> j, on samples that the fit has not seen.

    gram, moment: [F, S, P, P] and [F, S, T, P], as for `least_squares` but one for each of F >= 2 folds of the samples.
    A fit to all folds but one is scored on that one; the error comes from the statistics alone and in float64, less
    |y_j - u_0|^2, which no ridge changes.

    Returns (coefficients fitted to all folds [S, T, P], the ridges chosen [S, T]). Raises ValueError for one fold.
    """
    if len(gram) < 2:
        raise ValueError(f"gram: got statistics of {len(gram)} folds, wanted at least 2")
    whole, all_moments = gram.sum(0), moment.sum(0)
    first = torch.zeros(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    first[0] = 1
    errors = torch.zeros(len(ridges), *moment.shape[1:3], dtype=gram.dtype, device=gram.device)
    for left_out, moments in zip(gram, moment, strict=True):
        beyond = _solve(whole - left_out, all_moments - moments, prior, ridges) - first
        errors += torch.einsum("rijp,ipq,rijq->rij", beyond, left_out, beyond) - 2 * (beyond * moments).sum(-1)
    best = torch.where(errors.isnan(), torch.inf, errors).argmin(0)
    fits = _solve(whole, all_moments, prior, ridges)
    chosen = fits.gather(0, best[None, ..., None].expand(1, *fits.shape[1:]))[0]
    return chosen, gram.new_tensor(ridges)[best]


def _solve(gram: Tensor, moment: Tensor, prior: Tensor, ridges: Sequence[float]) -> Tensor:
    """float64 [R, S, T, P]: `least_squares` for every ridge."""
    if not all(ridge >= 0 for ridge in ridges):
        raise ValueError(f"ridge: got {min(ridges)}, wanted a number >= 0")
    usable = torch.isfinite(gram).flatten(1).all(1)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    matrix = torch.where(usable[:, None, None], gram, identity)
    length = matrix.diagonal(dim1=1, dim2=2).sqrt()
    present = length > 0
    length = torch.where(present, length, 1.0)
    # Against y_j - (what the prior gives): moment is against y_j - u_0, so the prior counts without its first unit.
    beyond = prior.clone()
    beyond[..., 0] -= 1
    right = (moment - torch.einsum("ipq,ijq->ijp", matrix, beyond)) / length[:, None]
    scaled = matrix / (length[:, :, None] * length[:, None, :]) + torch.diag_embed((~present).to(gram.dtype))
    values, vectors = torch.linalg.eigh(scaled)
    raised = values.clamp(min=0) + gram.new_tensor(ridges)[:, None, None]
    # Eigenvalues that rounding made zero or negative are left out: the minimum-norm solution.
    inverse = torch.where(raised > 1e-13 * values[:, -1:], 1 / raised, 0.0)
    turned = torch.einsum("iqr,ijq->ijr", vectors, right)
    solved = torch.einsum("ipr,nir,ijr->nijp", vectors, inverse, turned)
    fitted = prior + torch.where(present[:, None], solved / length[:, None], 0.0)
    return torch.where(usable[:, None, None], fitted, torch.nan)


def gain_of(rows: Tensor, target: Tensor, *, joint: bool, weight: Tensor | None = None, ranks: Ranks = ALONE) -> Tensor:
    """The least-squares gain <x, y> / <x, x> of rows x [n, D] for y [n, D]: float64, [] summed over the rows of all
    ranks (joint) or [n]; 1 where x is 0. weight: [D], of the products."""
    count = max(1, CHUNK // rows.shape[1])
    pairs = zip(rows.split(count), target.split(count), strict=True)
    sums = torch.cat([torch.stack([products(x, y, weight), squares(x, weight)], 1) for x, y in pairs])
    dot, square = ranks.gather(sums).sum(0) if joint else sums.unbind(1)
    return torch.where(square > 0, dot / square, 1.0)
