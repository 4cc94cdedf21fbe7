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


_BLOCK = 1024
"""Rows of moments that are made float64 at a time."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A solution: `weight` `[outputs, width]`, `bias` `[outputs]`, and the `ridge` that it took."""

    weight: Tensor
    bias: Tensor
    ridge: float


def factor(second: Tensor, ridge: float, *, mean: Tensor | None = None) -> tuple[Tensor, float]:
    """Cholesky factor of `H + ridge * scale_of(diag(H)) * I` in float64, and the ridge that it took.

    A ridge that does not do (constant channels, fewer patches than entries) is made ten times larger until
    one does.

    Args:
        second: `[width, width]`, symmetric: `H`, or with `mean` what becomes it.
        ridge: relative to `scale_of` the diagonal, >= 0.
        mean: `[width]`, float64: `H` is `second - mean meanᵀ`.

    Raises:
        ValueError: no ridge does: the matrix holds NaN or is far from positive semi-definite.
    """
    scale = scale_of(second.diagonal().double() - (0 if mean is None else mean.square()))
    for attempt in range(_ATTEMPTS):
        used = ridge * 10.0**attempt if ridge else (10.0 ** (attempt - 12) if attempt else 0.0)
        matrix = second.to(torch.float64, copy=True)
        if mean is not None:
            matrix.addr_(mean, mean, alpha=-1)
        matrix.diagonal().add_(used * scale)
        # In place, for another wide one takes hundreds of megabytes; LAPACK goes by columns, and these are its rows.
        lower, failed = matrix.mT, torch.zeros((), dtype=torch.int32, device=second.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not int(failed):
            return lower, used
    raise ValueError("second moments must be symmetric, positive semi-definite and free of NaN")


def scale_of(diagonal: Tensor) -> float:
    """The mean of a diagonal of moments; entries that never change leave nothing, or rounding of either sign, which is
    no less than the negative ones show."""
    below = -float(diagonal.min()) if len(diagonal) else 0.0
    return max(float(diagonal.mean()), below, torch.finfo(torch.float32).tiny)


def times(weight: Tensor, second: Tensor, mean: Tensor | None = None) -> Tensor:
    """`W (second - mean meanᵀ)` in float64, `[..., outputs, width]`; without `mean` `W second`.

    A wide `second` in float32 is made float64 a block of rows at a time.
    """
    weight = weight.double()
    blocks = zip(torch.split(weight, _BLOCK, dim=-1), torch.split(second, _BLOCK, dim=-2), strict=True)
    product = sum((part @ rows.double() for part, rows in blocks), weight.new_zeros(()))
    return product if mean is None else torch.addr(product, weight @ mean, mean, alpha=-1)


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
        self._mean = None if mean is None else mean.double()
        self._lower, self._ridge = factor(second, ridge, mean=self._mean)
        self._prior = None if prior is None else prior.double()
        self._expected = None if self._prior is None else times(self._prior, second, self._mean)

    def fit(self, cross: Tensor, target_mean: Tensor | None = None) -> Fit:
        """The best weights and bias for a target; `target_mean` where the bias is solved for."""
        c = cross.double()
        t = None if target_mean is None else target_mean.double()
        if self._mean is not None and t is not None:
            c = torch.addr(c, t, self._mean, alpha=-1)
        if self._expected is not None:
            c = c - self._expected
        # In two steps, for `cholesky_solve` copies the factor.
        half = torch.linalg.solve_triangular(self._lower, c.T, upper=False)
        weight = torch.linalg.solve_triangular(self._lower.mT, half, upper=True).T
        if self._prior is not None:
            weight = self._prior + weight
        bias = weight.new_zeros(len(weight)) if self._mean is None or t is None else t - weight @ self._mean
        return Fit(weight, bias, self._ridge)


def squared_error(second: Tensor, cross: Tensor, energy: Tensor, weight: Tensor) -> Tensor:
    """`E|y - V x|²` of each output, `[..., outputs]`, from moments; never below 0."""
    c, v = cross.double(), weight.double()
    return (energy.double() - 2 * (v * c).sum(-1) + (times(v, second) * v).sum(-1)).clamp(min=0)


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
