"""How far the answers of a pruned network are from the dense ones, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def divergence(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> float:
    """How far outputs are apart, averaged over inputs; 0 where they are the same.

    Logits (float outputs of at least two axes and two classes; classes on the last axis, or on axis 1 of four axes or
    more) are compared by `KL(softmax(dense) | softmax(pruned))` in nats, probabilities by KL as they are, any other
    output by its squared error relative to the variance of the dense one. Several outputs count equally.
    """
    pairs = [(d, p) for d, p in zip(dense, pruned, strict=True) if d.is_floating_point() and d.numel()]
    return sum(_one(d.double(), p.double()) for d, p in pairs) / max(len(pairs), 1)


def _one(dense: Tensor, pruned: Tensor) -> float:
    axis = 1 if dense.ndim >= 4 else dense.ndim - 1
    if dense.ndim < 2 or dense.shape[axis] < 2:
        return _relative(dense, pruned)
    if _probabilities(dense, axis) and _probabilities(pruned, axis):
        logs = dense.clamp_min(1e-12).log(), pruned.clamp_min(1e-12).log()
    else:
        logs = dense.log_softmax(axis), pruned.log_softmax(axis)
    value = float((logs[0].exp() * (logs[0] - logs[1])).sum(axis).mean())
    return max(value, 0.0) if value == value else float("inf")


def _probabilities(output: Tensor, axis: int) -> bool:
    sums = output.sum(axis)
    return bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _relative(dense: Tensor, pruned: Tensor) -> float:
    spread = float(dense.var(unbiased=False)) or float(dense.square().mean()) or 1.0
    value = float((dense - pruned).square().mean()) / spread
    return value if value == value else float("inf")
