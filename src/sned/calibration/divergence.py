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
        kl: `KL(softmax(dense) | softmax(pruned))` in nats, >= 0; None where the outputs are no classes.
        softened: the same of `softmax(· / T)` with `T` the root mean square of the dense answers around their
            mean over classes. Trained networks are so sure of themselves that at `T = 1` a handful of inputs
            makes up nearly all of the sum, and so decides by chance.
        agreement: share of inputs with the same most likely class by the first output with classes, in [0, 1]; None
            where the outputs are no classes.
        error: squared error relative to the variance of the dense outputs, >= 0.

    Reference: softened answers are those of Hinton et al., Distilling the Knowledge in a Neural Network,
        2015.
    """

    kl: float | None
    softened: float | None
    agreement: float | None
    error: float

    @property
    def key(self) -> float:
        """One number to compare by: `softened`, or `error` where there are no classes; infinite for NaN."""
        value = self.error if self.softened is None else self.softened
        return value if math.isfinite(value) else math.inf


def divergence(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> Divergence:
    """Compare outputs.

    Float outputs of at least two axes and two classes (on the last axis; on axis 1 where there are four axes
    or more) are taken for logits, or for probabilities where they are. Minus infinity in the dense outputs masks: what
    lies there is not compared.

    Args:
        dense, pruned: the outputs of both networks for the same inputs, in the same order.
    """
    pairs = [(d.double(), p.double()) for d, p in zip(dense, pruned, strict=True) if d.is_floating_point()]
    pairs = [(d, p) for d, p in pairs if d.numel()]
    if not pairs:
        return Divergence(None, None, None, 0.0)
    logs = [_logits(d, p) for d, p in pairs if d.ndim >= 2 and d.shape[_axis(d)] >= 2]
    return Divergence(
        kl=_mean([_kl(d, p, 1.0) for d, p in logs]),
        softened=_mean([softened(d, p) for d, p in logs]),
        agreement=_mean([float((d.argmax(-1) == p.argmax(-1)).double().mean()) for d, p in logs[:1]]),
        error=_mean([relative_error(d, p) for d, p in pairs]) or 0.0,
    )


def softened(dense: Tensor, pruned: Tensor) -> float:
    """`KL(softmax(dense / T) | softmax(pruned / T))` of logits `[..., classes]`, `T` by `temperature`, in nats; about
    half the relative error for small changes. Infinite where it is no number.
    """
    return _kl(dense, pruned, temperature(dense))


def temperature(logits: Tensor) -> float:
    """Root mean square of logits `[..., classes]` around their mean over classes, 1 for constant ones."""
    seen = ~logits.isneginf()
    mean = logits.masked_fill(~seen, 0.0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return float((logits - mean)[seen].square().mean().sqrt()) or 1.0


def relative_error(dense: Tensor, pruned: Tensor) -> float:
    """Mean squared difference over the variance of the dense outputs; infinite where it is no number."""
    seen = ~dense.isneginf()
    value = float((dense - pruned)[seen].square().mean()) / spread(dense)
    return value if math.isfinite(value) else math.inf


def spread(output: Tensor) -> float:
    """Variance of what is not masked; that of constant answers is their mean square."""
    seen = output[~output.isneginf()]
    return float(seen.var(correction=0)) or float(seen.square().mean()) or 1.0


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _axis(output: Tensor) -> int:
    return 1 if output.ndim >= 4 else output.ndim - 1


def _logits(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """Both with classes last; the logarithm of what are probabilities already."""
    d, p = dense.movedim(_axis(dense), -1), pruned.movedim(_axis(pruned), -1)
    return (logarithms(d), logarithms(p)) if probabilities(d) and probabilities(p) else (d, p)


def logarithms(output: Tensor) -> Tensor:
    """Of probabilities, as far as they can be told from 0."""
    return output.clamp_min(1e-12).log()


def _kl(dense: Tensor, pruned: Tensor, temperature: float) -> float:
    masked = dense.isneginf()
    p = (dense / temperature).log_softmax(-1)
    q = (pruned.masked_fill(masked, -math.inf) / temperature).log_softmax(-1)
    value = float((p.exp() * (p - q)).masked_fill(masked, 0.0).sum(-1).mean())
    return max(value, 0.0) if math.isfinite(value) else math.inf


def probabilities(output: Tensor) -> bool:
    """Whether an output is of probabilities, classes last."""
    sums = output.sum(-1)
    return bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
