"""How far a dense and a pruned network have got, batch by batch, while the layers of the latter are repaired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sned.calibration import Calibration, Consumer
from sned.calibration.spool import Spool, bytes_of
from sned.calibration.walk import Live, Walk
from sned.memory import BUDGET, trim
from sned.repair.following import Following

HELD = BUDGET
"""Bytes of both networks' activations that are held between two layers. Early layers read so many positions of each
input that fewer inputs do, and the others join where activations have become small."""

SHARE = 0.8
"""Of `HELD` for the inputs that take part at a layer; the rest is for those that wait."""

FEWEST = 32
"""Inputs that take part however large their activations are; what `HELD` has no room for goes to files."""


@dataclass(frozen=True)
class Place:
    """Where a consumer stands in one of the networks.

    Attributes:
        op: its index in `Graph.ops`.
        output: the tensor that it gives.
        other, sum: as in `Following`.
    """

    op: int
    output: int
    other: int | None
    sum: int

    @staticmethod
    def of(consumer: Consumer, following: Following) -> Place:
        """The place of a consumer, from what follows it."""
        return Place(consumer.op, consumer.output, following.other, following.sum)


class Front:
    """Both networks side by side, each batch as far as it was needed; a context that removes its files on leaving.

    Args:
        dense, pruned: where they start.
        calibration: gives the inputs.
        count: how many of them may take part.
        folder: where activations go that are too many to hold; a temporary folder when None.
    """

    def __init__(
        self, dense: Walk, pruned: Walk, calibration: Calibration, count: int, folder: Path | None
    ) -> None:
        self._walks = dense, pruned
        self._calibration = calibration
        self._count = count
        self._spool = Spool(folder, HELD)
        self._at: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *told: object) -> None:
        self._spool.__exit__(*told)

    def inputs_at(self, dense: Place, pruned: Place) -> int:
        """How many inputs take part at a consumer: brings the first batch there to see how much it holds."""
        self._spool.put(0, cut := self._brought(0, dense, pruned))
        batch = self._calibration.batch
        able = SHARE * HELD * self.size(0) // max(bytes_of(cut), 1)
        return min(self._count, max(int(able) // batch, -(-FEWEST // batch)) * batch)

    def to(self, dense: Place, pruned: Place, inputs: int) -> Iterator[tuple[int, Live, Live]]:
        """Bring the first `inputs` to a consumer, the dense network past it and the pruned one up to it.

        Yields:
            The number of a batch and both cuts, the other side of the sum that follows among them; not to be changed.
        """
        past, upto = self._walks
        for number in range(-(-inputs // self._calibration.batch)):
            a, b = self._brought(number, dense, pruned)
            size = self.size(number)
            yield (
                number,
                _with_other(past, a, size, dense, dense.op + 1),
                _with_other(upto, b, size, pruned, pruned.op),
            )
            self._spool.put(number, (a, b))
            trim()

    def _brought(self, number: int, past: Place, upto: Place) -> tuple[Live, Live]:
        dense, pruned = self._walks
        if number in self._at:
            a, b = self._spool.take(number)
        else:
            (inputs,) = self._calibration.batches(*self._range(number))
            a, b = dense.start(inputs), pruned.start(inputs)
        at = self._at.get(number, (0, 0))
        dense.advance(a, self.size(number), at[0], past.op + 1)
        pruned.advance(b, self.size(number), at[1], upto.op)
        self._at[number] = past.op + 1, upto.op
        return a, b

    def _range(self, number: int) -> tuple[int, int]:
        first = number * self._calibration.batch
        return first, min(first + self._calibration.batch, self._count)

    def size(self, number: int) -> int:
        """Inputs in a batch."""
        first, stop = self._range(number)
        return stop - first


def _with_other(walk: Walk, live: Live, size: int, place: Place, start: int) -> Live:
    """A cut ahead of op `start`, the other side of the sum that follows a consumer among it."""
    if place.other is None:
        return live
    return {**live, place.other: walk.ahead(live, size, place.other, start, place.sum)}
