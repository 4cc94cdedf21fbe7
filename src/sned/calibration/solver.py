"""Least squares on second moments: what remains can answer for what was removed.

A consumer computes `y = W x`. With `H = E[x xᵀ]`, keeping only the entries `S` of `x` and solving for new
weights `V` leaves the error `E|W x - V x_S|²`, smallest at `V = W H_S H_SS⁻¹`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sned.graph.ir import IntArray

FloatArray = NDArray[np.float64]

RIDGE = 1e-3
"""Ridge relative to the mean of the diagonal of the moments."""

_ATTEMPTS = 8
"""How often the ridge is made ten times larger before a matrix is given up as not a moment at all."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A solution: `weight` `[outputs, width]`, `bias` `[outputs]`, and the `ridge` that it took."""

    weight: Tensor
    bias: Tensor
    ridge: float


def factor(second: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Cholesky factor of `second + ridge * mean(diag(second)) * I` in float64, and the ridge that it took.

    A ridge that does not do (constant channels, fewer patches than entries) is made ten times larger until
    one does.

    Raises:
        ValueError: no ridge does: the matrix holds NaN or is far from positive semi-definite.
    """
    matrix = second.double()
    diagonal = matrix.diagonal().clone()
    scale = float(diagonal.mean())
    if scale <= 0:  # entries that never change leave nothing, or rounding of either sign
        scale = max(float(matrix.abs().max()), torch.finfo(torch.float32).tiny)
    try:
        for attempt in range(_ATTEMPTS):
            used = ridge * 10.0**attempt if ridge else (10.0 ** (attempt - 12) if attempt else 0.0)
            # In place, for a copy of a wide one takes hundreds of megabytes; it is put back below.
            matrix.diagonal().copy_(diagonal + used * scale)
            lower, failed = torch.linalg.cholesky_ex(matrix)
            if not int(failed):
                return lower, used
    finally:
        matrix.diagonal().copy_(diagonal)
    raise ValueError("second moments must be symmetric, positive semi-definite and free of NaN")


def least_squares(
    second: Tensor,
    cross: Tensor,
    *,
    mean: Tensor | None = None,
    target_mean: Tensor | None = None,
    prior: Tensor | None = None,
    ridge: float = RIDGE,
) -> Fit:
    """Solve `min E|y - V x - b|² + r |V - prior|²`, with `r = ridge * mean(diag(E[x xᵀ]))`.

    Args:
        second: `[width, width]`, `E[x xᵀ]`.
        cross: `[outputs, width]`, `E[y xᵀ]`.
        mean, target_mean: `E[x]` and `E[y]`; with both the bias is solved for, without it is zero.
        prior: `[outputs, width]`, weights to stay close to where the moments say little; zero by default.
        ridge: relative to the mean of the diagonal, >= 0; made larger where the moments are singular.

    Returns:
        Weights and bias in float64, and the ridge that it took.
    """
    if mean is None or target_mean is None:
        mean = target_mean = None
    return LeastSquares(second, mean=mean, prior=prior, ridge=ridge).fit(cross, target_mean)


class LeastSquares:
    """`least_squares` for several targets beside the same patches: what these alone say is worked out once.

    Args:
        second, mean, prior, ridge: as there; with `mean` the bias is solved for.
    """

    def __init__(
        self,
        second: Tensor,
        *,
        mean: Tensor | None = None,
        prior: Tensor | None = None,
        ridge: float = RIDGE,
    ) -> None:
        h = second.double()
        self._mean = None if mean is None else mean.double()
        if self._mean is not None:
            h = torch.addr(h, self._mean, self._mean, alpha=-1)
        self._lower, self._ridge = factor(h, ridge)
        self._prior = None if prior is None else prior.double()
        self._expected = None if self._prior is None else self._prior @ h

    def fit(self, cross: Tensor, target_mean: Tensor | None = None) -> Fit:
        """The best weights and bias for a target; `target_mean` where the bias is solved for."""
        c = cross.double()
        t = None if target_mean is None else target_mean.double()
        if self._mean is not None and t is not None:
            c = torch.addr(c, t, self._mean, alpha=-1)
        if self._expected is not None:
            c = c - self._expected
        weight = torch.cholesky_solve(c.T, self._lower).T
        if self._prior is not None:
            weight = self._prior + weight
        bias = weight.new_zeros(len(weight)) if self._mean is None or t is None else t - weight @ self._mean
        return Fit(weight, bias, self._ridge)


def squared_error(second: Tensor, cross: Tensor, energy: Tensor, weight: Tensor) -> Tensor:
    """`E|y - V x|²` of each output, `[..., outputs]`, from moments; never below 0."""
    h, c, v = second.double(), cross.double(), weight.double()
    return (energy.double() - 2 * (v * c).sum(-1) + (v @ h * v).sum(-1)).clamp(min=0)


def kept_error(second: Tensor, weight: Tensor, kept: IntArray, *, ridge: float = RIDGE) -> float:
    """Error of `y = W x` after the best repair when only the entries `kept` of `x` remain.

    Args:
        second: `[width, width]`, `E[x xᵀ]`.
        weight: `[outputs, width]`.
        kept: the entries that stay.
        ridge: relative to the mean of the diagonal.

    Returns:
        `trace((W - V) H (W - V)ᵀ) / trace(W H Wᵀ)`, where `V` is zero outside `kept` and best inside.
    """
    h, w = second.double(), weight.double()
    stay = torch.from_numpy(np.asarray(kept, np.int64))
    energy = float((w @ h * w).sum())
    if not energy:
        return 0.0
    gone = w.clone()
    if len(stay):
        fit = least_squares(h[stay][:, stay], (w @ h)[:, stay], prior=w[:, stay], ridge=ridge)
        gone[:, stay] -= fit.weight
    return max(float((gone @ h * gone).sum()), 0.0) / energy
