"""How far the answers of a pruned network are from the dense ones, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """How far outputs are apart, averaged over inputs (and over several outputs).

    Attributes:
        kl: `KL(dense | pruned)` of the classes in nats, >= 0; None where the outputs are no classes.
        agreement: share of inputs with the same most likely class, in [0, 1]; None where the outputs are no classes.
        error: squared error relative to the variance of the dense outputs, >= 0.
    """

    kl: float | None
    agreement: float | None
    error: float

    @property
    def key(self) -> float:
        """One number to compare by; infinite where anything is not finite."""
        value = self.error if self.kl is None else self.kl
        return value if math.isfinite(value) else math.inf


def divergence(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> Divergence:
    """Compare outputs.

    Float outputs of at least two axes and two classes (on the last axis; on axis 1 where there are four axes or more)
    are taken for logits, or for probabilities where they are.

    Args:
        dense, pruned: the outputs of both networks for the same inputs, in the same order.
    """
    pairs = [(d.double(), p.double()) for d, p in zip(dense, pruned, strict=True) if d.is_floating_point()]
    pairs = [(d, p) for d, p in pairs if d.numel()]
    if not pairs:
        return Divergence(None, None, 0.0)
    classes = [(d, p) for d, p in pairs if d.ndim >= 2 and d.shape[_axis(d)] >= 2]
    return Divergence(
        kl=_mean([_kl(d, p) for d, p in classes]),
        agreement=_mean([_agreement(d, p) for d, p in classes]),
        error=_mean([_relative(d, p) for d, p in pairs]) or 0.0,
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _axis(output: Tensor) -> int:
    return 1 if output.ndim >= 4 else output.ndim - 1


def _kl(dense: Tensor, pruned: Tensor) -> float:
    axis = _axis(dense)
    if _probabilities(dense, axis) and _probabilities(pruned, axis):
        p, q = dense.clamp_min(1e-12).log(), pruned.clamp_min(1e-12).log()
    else:
        p, q = dense.log_softmax(axis), pruned.log_softmax(axis)
    value = float((p.exp() * (p - q)).sum(axis).mean())
    return max(value, 0.0) if math.isfinite(value) else math.inf


def _agreement(dense: Tensor, pruned: Tensor) -> float:
    return float((dense.argmax(_axis(dense)) == pruned.argmax(_axis(pruned))).double().mean())


def _probabilities(output: Tensor, axis: int) -> bool:
    sums = output.sum(axis)
    return bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _relative(dense: Tensor, pruned: Tensor) -> float:
    spread = float(dense.var(correction=0)) or float(dense.square().mean()) or 1.0
    value = float((dense - pruned).square().mean()) / spread
    return value if math.isfinite(value) else math.inf
