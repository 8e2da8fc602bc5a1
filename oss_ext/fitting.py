"""Least-squares step coefficients: the linear combination of a node's basis that lands nearest to the teacher.

No training and no gradients: normal equations from the Gram statistics of the search's samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(gram: Tensor, moment: Tensor, prior: Tensor, *, ridge: float) -> Tensor:
    """Coefficients C that minimise |sum_p C_p u_p - y_j|^2 + ridge |D (C - prior)|^2 for every step i -> j.

    D scales each basis vector to unit length, so that `ridge` has no units: 0 is plain least squares, and the larger
    it is, the nearer C stays to `prior`. Vectors of length zero (a history that a young path lacks) keep the prior's
    weight.

    gram: float64 [M, P, P], inner products of node i's basis, summed over the samples.
    moment: float64 [M, M, P], inner products with the teacher's state at j minus u_0, likewise (`kernels.gram`).
    prior: float64 [M, M, P], the coefficients to stay near: a solver's. ridge: >= 0.

    Returns float64 [M, M, P] on the device of `gram`; NaN where the statistics of node i are not finite.
    Raises ValueError for a negative ridge.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge: got {ridge}, wanted a number >= 0")
    count = gram.shape[-1]
    usable = torch.isfinite(gram).flatten(1).all(1)
    identity = torch.eye(count, dtype=gram.dtype, device=gram.device)
    matrix = torch.where(usable[:, None, None], gram, identity)
    length = matrix.diagonal(dim1=1, dim2=2).sqrt()
    present = length > 0
    length = torch.where(present, length, 1.0)
    # Against y_j - (what the prior gives): moment is against y_j - u_0, so the prior counts without its first unit.
    beyond = prior.clone()
    beyond[..., 0] -= 1
    right = (moment - torch.einsum("ipq,ijq->ijp", matrix, beyond)) / length[:, None]
    scaled = matrix / (length[:, :, None] * length[:, None, :])
    scaled = scaled + ridge * identity + torch.diag_embed((~present).to(gram.dtype))
    # Eigenvalues that rounding made zero or negative are left out: the minimum-norm solution.
    values, vectors = torch.linalg.eigh(scaled)
    inverse = torch.where(values > 1e-13 * values[:, -1:], 1 / values, 0.0)
    solved = torch.einsum("ipr,ir,iqr,ijq->ijp", vectors, inverse, vectors, right)
    fitted = prior + solved / length[:, None]
    return torch.where(usable[:, None, None], fitted, torch.nan)
