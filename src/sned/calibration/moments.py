"""Second moments of what enters a consumer, accumulated in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from sned.calibration.spool import Spool

WIDEST = 8192
"""Patches wider than this keep only the diagonal of their moments (all would take over half a gigabyte)."""

PRECISE = 1024
"""Up to this width sums are kept in float64, beyond in float32 to save memory."""

BLOCK = 768
"""Rows of wide products that are worked out at a time."""


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


def pooled(moments: Iterable[Moment]) -> Moment:
    """What is known of the patches of several consumers together; one moment after another is looked at."""
    return reduce(_both, moments)


def _both(one: Moment, other: Moment) -> Moment:
    count = one.count + other.count
    share = other.count / max(count, 1)
    second = None if one.second is None or other.second is None else one.second.lerp(other.second, share)
    return Moment(
        second=second,
        diagonal=one.diagonal.lerp(other.diagonal, share),
        mean=one.mean.lerp(other.mean, share),
        count=count,
    )


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
    """Running sums over patches and targets; products in float32, sums in float64 where they are small.

    Args:
        full: whether to keep `[width, width]` moments, or only their diagonal.
    """

    def __init__(self, *, full: bool = True) -> None:
        self._full = full
        self._count = 0
        self._patches: list[Tensor] = []
        self._target: list[Tensor] = []

    def add(self, x: Tensor, target: Tensor | None = None) -> None:
        """Take in patches `[parts, width, n]` and a target `[parts, outputs, n]`."""
        self.add_patches(x)
        if target is not None:
            self.add_target(x, target)

    def add_patches(self, x: Tensor) -> None:
        """Take in patches."""
        x = x.float()
        if self._full and x.shape[1] > PRECISE:
            self._add_wide(x)
        else:
            self._patches = _added(self._patches, [x.sum(-1), x @ x.mT if self._full else x.square().sum(-1)])
        self._count += x.shape[-1]

    def _add_wide(self, x: Tensor) -> None:
        """Only the blocks below the diagonal and on it: the others mirror them."""
        parts, width, _ = x.shape
        if not self._patches:
            self._patches = [x.new_zeros(parts, width), x.new_zeros(parts, width, width)]
        mean, second = self._patches
        mean += x.sum(-1)
        for first in range(0, width, BLOCK):
            stop = min(first + BLOCK, width)
            second[:, first:stop, :stop].baddbmm_(x[:, first:stop], x[:, :stop].mT)

    def add_target(self, x: Tensor, target: Tensor) -> None:
        """Take in a target beside its patches."""
        y = target.float()
        self._target = _added(self._target, [y.sum(-1), y.square().sum(-1), y @ x.float().mT])

    def moment(self) -> Moment:
        """Moments of the patches. They take the place of the sums, so no more patches can be added."""
        mean, second = (t.div_(max(self._count, 1)) for t in self._patches)
        self._patches = []
        if not self._full:
            return Moment(None, second, mean, self._count)
        if second.shape[1] > PRECISE:
            for first in range(BLOCK, second.shape[1], BLOCK):
                stop = first + BLOCK
                second[:, :first, first:stop] = second[:, first:stop, :first].mT
        return Moment(second, second.diagonal(dim1=1, dim2=2).clone(), mean, self._count)

    def target(self) -> CrossMoment:
        """Moments of the target."""
        mean, energy, cross = (t / max(self._count, 1) for t in self._target)
        return CrossMoment(cross, mean, energy)

    def held(self) -> dict[str, Tensor]:
        """The sums over patches so far, for `restore`."""
        named = {str(place): tensor for place, tensor in enumerate(self._patches)}
        return named | {"count": torch.tensor(self._count)}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what `held` gave."""
        self._count = int(held["count"])
        self._patches = [held[str(place)] for place in range(len(held) - 1)]

    def forget_target(self) -> None:
        """Make room for another target beside the same patches."""
        self._target = []


class Moments(Mapping[int, Moment]):
    """The moment of every consumer by its op; those that do not fit into memory are read from files.

    Args:
        first: for each consumer the first one that reads the very same patches.
        made: the moments of those.
        folder: where files go; a temporary folder when None.
    """

    def __init__(
        self, first: Mapping[int, int], made: Iterable[tuple[int, Moment]], folder: Path | None = None
    ) -> None:
        self._first = first
        self._spool = Spool(folder)
        for op, moment in made:
            self._spool.put(op, (moment.second, moment.diagonal, moment.mean, moment.count))

    def __getitem__(self, op: int) -> Moment:
        return Moment(*self._spool.look(self._first[op]))

    def __iter__(self) -> Iterator[int]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)


def _added(totals: list[Tensor], terms: list[Tensor]) -> list[Tensor]:
    if not totals:
        return [t.to(torch.float32 if t.shape[-1] > PRECISE else torch.float64) for t in terms]
    return [total.add_(term) for total, term in zip(totals, terms, strict=True)]
