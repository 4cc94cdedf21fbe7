"""Second moments of what enters a consumer, accumulated in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

WIDEST = 8192
"""Patches wider than this keep only the diagonal of their moments (a full matrix would take over half a gigabyte)."""

PRECISE = 2048
"""Up to this width sums are kept in float64, beyond in float32 to save memory."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What is known of the patches `x` that enter one consumer.

    Attributes:
        second: `[parts, width, width]`, `E[x xᵀ]` (not centred); None where `width` is above `WIDEST`.
        diagonal: `[parts, width]`, `E[x²]`.
        mean: `[parts, width]`, `E[x]`.
        count: how many patches were seen.
    """

    second: Tensor | None = field(repr=False)
    diagonal: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    count: int


@dataclass(frozen=True, eq=False)
class CrossMoment:
    """What is known of targets `y` beside the patches `x`.

    Attributes:
        cross: `[parts, outputs, width]`, `E[y xᵀ]`.
        mean: `[parts, outputs]`, `E[y]`.
        energy: `[parts, outputs]`, `E[y²]`.
    """

    cross: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    energy: Tensor = field(repr=False)


class Sums:
    """Running sums over patches and any number of targets; products in float32, sums in float64 where small."""

    def __init__(self, *, full: bool = True) -> None:
        self._full = full
        self._count = 0
        self._held: list[Tensor] = []

    def add(self, x: Tensor, targets: Sequence[Tensor] = ()) -> None:
        """Take in patches `[parts, width, n]` and targets `[parts, outputs, n]`."""
        x = x.float()
        second = x @ x.mT if self._full else x.new_zeros(0)
        diagonal = second.diagonal(dim1=1, dim2=2) if self._full else x.square().sum(-1)
        terms = [x.sum(-1), diagonal, second]
        for target in targets:
            y = target.float()
            terms += [y.sum(-1), y.square().sum(-1), y @ x.mT]
        if not self._held:
            self._held = [t.to(torch.float32 if t.shape[-1] > PRECISE else torch.float64) for t in terms]
        else:
            for total, term in zip(self._held, terms, strict=True):
                total += term
        self._count += x.shape[-1]

    def moment(self) -> Moment:
        """Moments of the patches."""
        first, diagonal, second = (t / max(self._count, 1) for t in self._held[:3])
        return Moment(second if self._full else None, diagonal, first, self._count)

    def targets(self) -> list[CrossMoment]:
        """Moments of the targets, in the order given."""
        scaled = [t / max(self._count, 1) for t in self._held[3:]]
        return [CrossMoment(scaled[i + 2], scaled[i], scaled[i + 1]) for i in range(0, len(scaled), 3)]
