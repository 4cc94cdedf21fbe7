"""Labels that flow: the labels of every tensor while the ops of a graph are visited, and what meets noted down.

What each kind of op does to labels is told beside: `joins.py` where axes of several tensors meet, `views.py` where one
tensor is seen in another shape or in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from math import gcd, prod

import numpy as np

from sned.graph.ir import IntArray, Op, Ref, Tensor
from sned.graph.labels import Box, Boxes, covering, line, upright
from sned.graph.origins import Origins
from sned.graph.relations import Cells, Relations, Why

MAX_PARTS = 64
"""A slice that cuts an axis in more equal parts than this is not read as a division of it."""


class Flow:
    """The labels of every tensor of a graph while its ops are visited in order.

    Args:
        tensors: of the recording, by number.
        read: numbers of those that an op reads or that leave the network.
        relations: where to note what meets; what an earlier pass over the same labels found, if there was one.
    """

    def __init__(self, tensors: Sequence[Tensor], read: Set[int], relations: Relations | None = None) -> None:
        self.tensors = tensors
        self.read = read
        self.relations = Relations() if relations is None else relations
        self.boxes: dict[int, Boxes] = {}
        self.op: Op | None = None
        self.origins = Origins((), ())
        self._columns: dict[tuple[bytes, tuple[int, ...], int], IntArray] = {}

    # --- reading -------------------------------------------------------------------------------------------------

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a tensor, as recorded."""
        return self.tensors[ref.id].shape

    def of(self, ref: Ref) -> Boxes:
        """Boxes of a tensor; none when nothing on it can go."""
        return self.boxes.get(ref.id, ())

    def axis(self, box: Box, axis: int) -> IntArray:
        """One label for each index of an axis: those of a slab, or of whole columns on the free axis of a rectangle."""
        if axis in box.slabs:
            return box.slabs[axis]
        if not box.slabs:
            return box.ids.reshape(-1)
        key = (box.ids.tobytes(), box.ids.shape, axis)
        if key not in self._columns:
            columns = self.fresh(box.ids.shape[axis])
            along = np.moveaxis(box.ids, axis, 0).reshape(len(columns), -1)
            self.tie(np.broadcast_to(columns[:, None], along.shape), along)
            self._columns[key] = columns
        return self._columns[key]

    def product(self, axes: Sequence[IntArray]) -> IntArray:
        """A label for each combination of the labels of several axes, the same whenever the same axes meet."""
        key = tuple(labels.tobytes() for labels in axes)
        if key not in self.relations.products:
            shape = [len(labels) for labels in axes]
            self.relations.products[key] = self.fresh(prod(shape)).reshape(shape)
        return self.relations.products[key]

    # --- relations -----------------------------------------------------------------------------------------------

    def fresh(self, count: int) -> IntArray:
        """`count` labels never used before."""
        self.relations.count += count
        return np.arange(self.relations.count - count, self.relations.count)

    def unite(self, a: IntArray, b: IntArray) -> None:
        """The labels of two arrays of one shape are the same channels, position by position."""
        if a is not b:
            self.relations.same.append((np.ravel(a), np.ravel(b)))

    def tie(self, a: IntArray, b: IntArray) -> None:
        """The labels of two arrays of one shape leave together."""
        self.relations.together.append((np.ravel(a), np.ravel(b)))

    def freeze(self, ids: IntArray, reason: str) -> None:
        """These labels stay."""
        why = Why(self.op.name if self.op else "output", self.op.module if self.op else "", reason)
        self.relations.frozen.append((np.ravel(ids), why))

    def block(self, ids: IntArray, reason: str) -> None:
        """These labels do not leave by themselves; a slab that they lie on may still take them along."""
        guards = self.fresh(ids.size)
        self.tie(np.ravel(ids), guards)
        self.freeze(guards, reason)

    def spans(self, ids: IntArray) -> None:
        """A normalisation, mean or softmax spans these labels: removing them is not the same as zeroing them."""
        self.relations.inexact.append(np.ravel(ids))

    def freeze_boxes(self, boxes: Boxes, reason: str) -> None:
        """Everything that these boxes label stays."""
        for box in boxes:
            self.freeze(box.ids, reason)
            for slab in box.slabs.values():
                self.freeze(slab, reason)

    def equal_parts(
        self, box: Box, axis: int, cuts: Iterable[int], beside: Sequence[slice] | None = None
    ) -> None:
        """An axis is cut at `cuts`: the parts keep their proportion, so each of them loses equally many.

        They need not where the code finds those places by other numbers than the size of the axis, and only the
        ranges `beside` must stay.
        """
        size = box.ids.shape[axis]
        part = gcd(size, *cuts)
        if part == size or size // part > MAX_PARTS:
            return
        instead = None if beside is None else self._guards(box, axis, beside)
        self._alike(*_owned(box, axis, part), instead)

    def _guards(self, box: Box, axis: int, ranges: Sequence[slice]) -> IntArray:
        """Labels that keep some ranges of an axis, once they stay; a slab may still take positions along."""
        if not ranges:
            return np.zeros(0, np.int64)
        ids = np.unique(np.concatenate([self.axis(box, axis)[each] for each in ranges]))
        guards = self.fresh(ids.size)
        self.tie(ids, guards)
        return guards

    def alike(self, box: Box, part: int, instead: IntArray | None = None) -> None:
        """Along the free axis, parts of `part` positions of every row lose equally many."""
        self._alike(*_owned(box, box.free, part), instead)

    def declare(self, box: Box, inherited: Iterable[int] = ()) -> None:
        """Note what a new rectangle asks: slabs take what lies on them along, rows lose equally many."""
        for axis, slab in box.slabs.items():
            if axis not in inherited:
                self.lie(slab, np.moveaxis(box.ids, axis, 0).reshape(len(slab), -1))
        if box.slabs:
            self.alike(box, box.ids.shape[box.free])

    def lie(self, slab: IntArray, lying: IntArray) -> None:
        """Labels `lying` `[slab, n]` leave with those of `slab`; a batch merged into the axis repeats rows."""
        _, first = np.unique(slab, return_index=True)
        self.relations.slabs.append((np.repeat(slab[first], lying.shape[1]), lying[first].ravel()))

    def _alike(
        self, rows: IntArray, owners: Sequence[IntArray] = (), instead: IntArray | None = None
    ) -> None:
        held = np.stack(owners, axis=1) if owners else np.zeros((len(rows), 0), np.int64)
        if len(rows) > 64:  # a batch merged into an axis repeats rows
            _, first = np.unique(
                np.concatenate([rows[:, :1], rows[:, -1:], held], axis=1), axis=0, return_index=True
            )
            rows, held = rows[first], held[first]
        self.relations.cells.append(Cells(rows, held, instead))

    def link(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        """The code takes the size of one axis (tensor, axis) from another: they keep their proportion."""
        here = covering(self.boxes.get(source[0], ()), source[1])
        there = covering(self.boxes.get(target[0], ()), target[1])
        if (here is None or here.filler) and (there is None or there.filler):
            return
        if here is None or there is None:
            box, axis = (here, source[1]) if here is not None else (there, target[1])
            if box is not None and not box.filler:
                self.freeze(self.axis(box, axis), "its size is tied to that of an axis that stays")
            return
        mine = here.rows() if source[1] == here.free else here.slabs[source[1]][None]
        theirs = there.rows() if target[1] == there.free else there.slabs[target[1]][None]
        if mine.shape == theirs.shape:
            self._proportion(mine.ravel(), theirs.reshape(1, -1))
        elif mine.shape[1] == theirs.shape[1]:
            self._as_many((here, source[1]), (there, target[1]))
        else:
            self._proportion(mine[0], theirs)

    def _as_many(self, *axes: tuple[Box, int]) -> None:
        """Axes of one size, some of them with many rows, lose equally many in every row that is there."""
        held = [_owned(box, axis, box.ids.shape[axis]) for box, axis in axes]
        stays = self.fresh(1)
        slabs = max(len(owners) for _, owners in held)
        filled = [[*owners, *[np.repeat(stays, len(rows))] * (slabs - len(owners))] for rows, owners in held]
        self._alike(
            np.concatenate([rows for rows, _ in held]),
            [np.concatenate(owners) for owners in zip(*filled, strict=True)],
        )

    def _proportion(self, mine: IntArray, theirs: IntArray) -> None:
        """`mine` `[size]` and the rows `theirs` `[rows, size]` of another axis lose in one proportion."""
        one = theirs[0]
        if len(mine) == len(one):
            if bool((mine != one).any()):
                self._alike(np.stack([mine, one]))
        elif len(mine) == theirs.size:
            self._alike(np.stack([mine, theirs.ravel()]))
        elif len(mine) % len(one) == 0:
            self.tie(mine.reshape(-1, len(one)), np.broadcast_to(one, (len(mine) // len(one), len(one))))
        elif len(one) % len(mine) == 0:
            self.tie(one.reshape(-1, len(mine)), np.broadcast_to(mine, (len(one) // len(mine), len(mine))))
        else:
            self.block(mine, "its size is tied to that of an axis of no whole multiple")
            self.block(one, "its size is tied to that of an axis of no whole multiple")

    # --- writing -------------------------------------------------------------------------------------------------

    def put(self, op: Op, boxes: Boxes, output: int = 0) -> None:
        """Label an output of `op`; an op that returns the very tensor that it was given joins both labels."""
        number = op.outputs[output]
        if number is not None:
            self.boxes[number] = tuple(box for box in boxes if self.tensors[number].shape)

    def parameter(self, number: int) -> dict[int, IntArray]:
        """Give every axis of a parameter labels of its own; returns them by axis."""
        shape = self.tensors[number].shape
        labels = {axis: self.fresh(size) for axis, size in enumerate(shape) if size > 1}
        self.boxes[number] = tuple(line(ids, axis, len(shape)) for axis, ids in labels.items())
        return labels

    def filler(self, shape: Sequence[int], axes: Iterable[int], *, lifted: bool = True) -> Boxes:
        """Labels for values that do not depend on the position along `axes`; not `lifted` where they are zero."""
        return tuple(
            line(self.fresh(shape[a]), a, len(shape), filler=True, lifted=lifted)
            for a in axes
            if shape[a] > 1
        )


def _owned(box: Box, axis: int, part: int) -> tuple[IntArray, list[IntArray]]:
    """Parts of an axis as rows `[rows, part]`, and for each other axis of a rectangle the labels of their slabs."""
    if axis != box.free:
        return box.slabs[axis].reshape(-1, part), []
    rows = np.moveaxis(box.ids, axis, -1)
    owners = [
        np.broadcast_to(np.moveaxis(upright(slab, a, box.ids.ndim), axis, -1), rows.shape)
        for a, slab in box.slabs.items()
    ]
    return rows.reshape(-1, part), [owner.reshape(-1, part)[:, 0] for owner in owners]


Rule = Callable[[Flow, Op], None]
