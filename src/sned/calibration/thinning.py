"""Zeros inside a matrix, with the entries that stay answering for those that go.

For `y = W x` with `H = E[x xᵀ] + r I`, entries leave in rounds. In each, an entry is worth

    v_ij² / (H⁻¹)_jj

(what its removal costs after the best repair, were it the only one), the least worthy go, and the others are fitted
anew to the dense output: a least-squares problem for each row on its own support, solved for all rows at once by
conjugate gradients that never leave the support.

Reference: Hassibi and Stork, Optimal Brain Surgeon, 1993 (worth); Frantar and Alistarh, SparseGPT, 2023 (one Hessian
for all rows); Meng et al., ALPS, 2024, section 3.3 (conjugate gradients on a fixed support); Zhu and Gupta, To Prune or
not to Prune, 2017 (cubic rounds).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sned.calibration.patterns import Pattern
from sned.calibration.solver import RIDGE, factor, scale_of

ROUNDS = 8
"""Times that entries leave and the rest is fitted."""

STEPS = 24
"""Conjugate-gradient steps of each fit."""

WIDE = 1024
"""From this width on sums are in float32."""


def thinned(
    weight: Tensor,
    second: Tensor,
    window: int,
    pattern: Pattern,
    density: float,
    *,
    stay: Tensor | None = None,
    ridge: float = RIDGE,
) -> Tensor:
    """The weights with zeros where entries left, and the rest repaired.

    Args:
        weight: `[outputs, width]`, the best dense weights.
        second: `[width, width]`, `E[x xᵀ]` of what enters (centred where a bias is free).
        window: positions of a kernel: entry `j` belongs to channel `j // window`.
        pattern: of the zeros.
        density: share that stays, in (0, 1]; an N:M pattern has its own.
        stay: bool, like `weight`: False where entries are zero already and stay so; none are when None.
        ridge: relative to the mean of the diagonal.

    Returns:
        float64 `[outputs, width]`.
    """
    lower, used = factor(second, ridge)
    cost = torch.cholesky_inverse(lower).diagonal().clone()
    del lower  # wide ones take hundreds of megabytes
    h = _damped(second, used)
    goal, start, values = weight.to(h.dtype), 1.0, weight.to(h.dtype)
    end = density if pattern.fixed is None else 1 - pattern.fixed
    stay = torch.ones_like(goal, dtype=torch.bool) if stay is None else stay
    for number in range(1, ROUNDS + 1):
        share = end + (start - end) * (1 - number / ROUNDS) ** 3
        loss = (values.double().square() / cost * stay).reshape(len(goal), -1, window)
        stay = stay & pattern.choose(loss, share).reshape(goal.shape)
        values = _fitted(goal, h, stay, values * stay)
    return values.double()


def held(stay: Tensor, weight: Tensor, second: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """The same where it is known which entries stay: the others are zero, and these repaired, float64."""
    _, used = factor(second, ridge)
    h = _damped(second, used)
    goal = weight.to(h.dtype)
    return _fitted(goal, h, stay, goal * stay, ROUNDS * STEPS).double()


def _damped(second: Tensor, ridge: float) -> Tensor:
    h = second.to(torch.float32 if len(second) > WIDE else torch.float64)
    return h + torch.eye(len(h), dtype=h.dtype) * (ridge * scale_of(h.diagonal()))


def _fitted(goal: Tensor, h: Tensor, stay: Tensor, values: Tensor, steps: int = STEPS) -> Tensor:
    """`min tr((V - goal) H (V - goal)ᵀ)` over the entries that stay, from `values`, all rows at once."""
    scale = h.diagonal().rsqrt()
    residual = ((goal - values) @ h) * stay
    ready = residual * scale.square()
    direction, power = ready, (residual * ready).sum(1, keepdim=True)
    tiny = torch.finfo(goal.dtype).tiny
    for _ in range(steps):
        pushed = (direction @ h) * stay
        step = power / (direction * pushed).sum(1, keepdim=True).clamp(min=tiny)
        values = values + step * direction
        residual = residual - step * pushed
        ready = residual * scale.square()
        before, power = power, (residual * ready).sum(1, keepdim=True)
        direction = ready + power / before.clamp(min=tiny) * direction
    return values
