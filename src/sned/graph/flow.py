"""Labels that flow: do to the labels what each op does to the data, and note which of them meet.

A `Flow` holds the boxes of every tensor and four relations, solved all at once afterwards (`coupling.py`):

- *same*: two labels are one channel;
- *together*: labels that must leave together, although each can also leave in another way;
- *slab*: a label (a head, a group) that takes others with it when it goes;
- *cells*: rows of labels that must lose equally many, unless one leaves whole with its slab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np

from sned.graph.ir import IntArray, Op, Ref, Tensor
from sned.graph.labels import Box, Boxes, covering, line, matching_runs, squeezed, varying_axes

MAX_PARTS = 64
"""A slice that cuts an axis in more equal parts than this is not read as a division of it."""

Letters = Sequence[str | None]
"""A name for each axis of an operand; axes of the same name meet. None: the axis has size 1 or is left alone."""


@dataclass(frozen=True)
class Why:
    """The op that fixed some labels, and the reason."""

    op: str
    module: str
    reason: str


@dataclass(frozen=True)
class Cells:
    """Rows of labels `[rows, size]` that must lose equally many.

    `owners` `[rows, slabs]` are the labels of the slabs that a row lies on: with one of them it leaves as a whole.
    """

    rows: IntArray
    owners: IntArray


@dataclass
class Relations:
    """What the flow found out about its labels; the input of `coupling.solve`."""

    count: int = 0
    same: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    together: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    slabs: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    cells: list[Cells] = field(default_factory=list)
    frozen: list[tuple[IntArray, Why]] = field(default_factory=list)
    inexact: list[IntArray] = field(default_factory=list)


class Flow:
    """The labels of every tensor of a graph while its ops are visited in order."""

    def __init__(self, tensors: Sequence[Tensor], relations: Relations | None = None) -> None:
        self.tensors = tensors
        self.relations = Relations() if relations is None else relations
        self.boxes: dict[int, Boxes] = {}
        self.op: Op | None = None
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

    def equal_parts(self, box: Box, axis: int, cuts: Iterable[int]) -> None:
        """An axis is cut at `cuts`: the parts keep their proportion, so each of them loses equally many."""
        size = box.ids.shape[axis]
        part = gcd(size, *cuts)
        if part == size or size // part > MAX_PARTS:
            return
        if axis == box.free:
            self.alike(box, part)
        else:
            self._alike(box.slabs[axis].reshape(-1, part))

    def alike(self, box: Box, part: int) -> None:
        """Along the free axis, parts of `part` positions of every row lose equally many."""
        rows = np.moveaxis(box.ids, box.free, -1)
        owners = [
            np.broadcast_to(np.moveaxis(_upright(slab, axis, box.ids.ndim), box.free, -1), rows.shape)
            for axis, slab in box.slabs.items()
        ]
        self._alike(rows.reshape(-1, part), [owner.reshape(-1, part)[:, 0] for owner in owners])

    def _alike(self, rows: IntArray, owners: Sequence[IntArray] = ()) -> None:
        held = np.stack(owners, axis=1) if owners else np.zeros((len(rows), 0), np.int64)
        if len(rows) > 64:  # a batch merged into an axis repeats rows
            _, first = np.unique(
                np.concatenate([rows[:, :1], rows[:, -1:], held], axis=1), axis=0, return_index=True
            )
            rows, held = rows[first], held[first]
        self.relations.cells.append(Cells(rows, held))

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
        else:
            self._proportion(mine[0], theirs)

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

    def filler(self, shape: Sequence[int], axes: Iterable[int] | None = None) -> Boxes:
        """Labels for values that do not depend on the position along `axes` (default: any)."""
        chosen = range(len(shape)) if axes is None else axes
        return tuple(line(self.fresh(shape[a]), a, len(shape), filler=True) for a in chosen if shape[a] > 1)

    # --- how ops move labels -------------------------------------------------------------------------------------

    def join(self, operands: Sequence[tuple[Boxes, Sequence[int], Letters]], out: Letters) -> Boxes:
        """Axes of one letter meet, as in an einsum; a letter missing from `out` is summed over.

        `operands` are triples of boxes, shape and letters. Returns the boxes of the result.
        """
        holders: dict[str, list[tuple[int, int, Box | None]]] = {}
        for number, (boxes, shape, letters) in enumerate(operands):
            for axis, letter in enumerate(letters):
                if letter is not None and shape[axis] > 1:
                    holders.setdefault(letter, []).append((number, axis, covering(boxes, axis)))
        self._unite_rectangles(operands)
        for held in holders.values():
            self._meet(held, operands)
        return self._collect(operands, holders, out)

    def _meet(
        self,
        held: list[tuple[int, int, Box | None]],
        operands: Sequence[tuple[Boxes, Sequence[int], Letters]],
    ) -> None:
        labelled = [(box, axis, self._span(box, operands[n][2])) for n, axis, box in held if box is not None]
        if len(labelled) < len(held):
            for box, axis, _ in labelled:
                self.freeze(self.axis(box, axis), "meets an axis of fixed size")
            return
        first, first_axis, first_span = labelled[0]
        for box, axis, span in labelled[1:]:
            if span is None or span != first_span:
                self.unite(self.axis(first, first_axis), self.axis(box, axis))

    @staticmethod
    def _span(box: Box, letters: Letters) -> tuple[str | None, frozenset[str | None]] | None:
        """What a rectangle covers, by letter (rectangles of one span are united whole); None for a single axis."""
        return (letters[box.free], frozenset(letters[a] for a in box.axes)) if box.slabs else None

    def _unite_rectangles(self, operands: Sequence[tuple[Boxes, Sequence[int], Letters]]) -> None:
        seen: dict[tuple[str | None, frozenset[str | None]], tuple[Box, Letters]] = {}
        for boxes, _, letters in operands:
            for box in boxes:
                span = self._span(box, letters)
                first, first_letters = seen.setdefault(span, (box, letters)) if span else (box, letters)
                if first is box:
                    continue
                order = sorted(first.axes)
                mine = [letters.index(first_letters[a]) for a in order]
                self.unite(_compact(first.ids, order), _compact(box.ids, mine))
                for axis, slab in first.slabs.items():
                    self.unite(slab, box.slabs[letters.index(first_letters[axis])])

    def _collect(
        self,
        operands: Sequence[tuple[Boxes, Sequence[int], Letters]],
        holders: Mapping[str, list[tuple[int, int, Box | None]]],
        out: Letters,
    ) -> Boxes:
        place = {letter: axis for axis, letter in enumerate(out) if letter is not None}
        covered: set[str | None] = set()
        result: list[Box] = []
        for boxes, _, letters in operands:
            for box in boxes:
                span = {letters[a] for a in box.axes}
                if box.slabs and span <= place.keys() and not span & covered:
                    result.append(box.moved({a: place[letters[a]] for a in box.axes}, len(out)))  # type: ignore[index]
                    covered |= span
        for letter, axis in place.items():
            held = holders.get(letter, [])
            labelled = [(box, at) for _, at, box in held if box is not None]
            if (
                letter in covered or not labelled or len(labelled) < len(held)
            ):  # met an axis that stays: so does this
                continue
            plain = [(box, at) for box, at in labelled if not box.filler] or labelled
            box, at = plain[0]
            result.append(line(self.axis(box, at), axis, len(out), filler=box.filler and not box.slabs))
        return tuple(result)

    def reshape(self, boxes: Boxes, old: Sequence[int], new: Sequence[int]) -> Boxes:
        """Boxes after a view of shape `old` as shape `new` (row-major)."""
        runs = matching_runs(old, new)
        boxes = self._without_conflicts(boxes, old, runs)
        return tuple(moved for box in boxes if (moved := self._reshaped(box, old, new, runs)) is not None)

    def _without_conflicts(
        self, boxes: Boxes, old: Sequence[int], runs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> Boxes:
        """Where two boxes run together into one axis, drop fillers, else make one rectangle of them."""
        for left, right in runs:
            inside = [box for box in boxes if box.axes & set(left)]
            merging = len([a for a in left if old[a] > 1]) > 1 and bool(right)
            if not merging or len(inside) < 2:
                continue
            for box in [b for b in inside if b.filler]:
                self.block(box.ids, "merged with another axis")
            solid = [b for b in inside if not b.filler] or inside[:1]
            boxes = tuple(b for b in boxes if b not in inside)
            boxes += (solid[0] if len(solid) == 1 else self._product(solid),)
        # A filler that is merged with an axis without labels is repeated values at fixed places.
        return boxes

    def _product(self, boxes: Sequence[Box]) -> Box:
        """One rectangle with the labels of several boxes along its axes.

        Free is the axis that was labelled last (dimensions come after heads in a parameter), whatever the order here,
        so that two products of the same axes ask the same.
        """
        axes = sorted(axis for box in boxes for axis in box.axes)
        labels = {axis: self.axis(box, axis) for box in boxes for axis in box.axes}
        rank = boxes[0].ids.ndim
        shape = [len(labels[a]) if a in labels else 1 for a in range(rank)]
        ids = self.fresh(int(np.prod(shape))).reshape(shape)
        free = max(axes, key=lambda axis: int(labels[axis][0]))
        box = Box(ids, free, {a: labels[a] for a in axes if a != free})
        self._declare(box)
        self.unite(self.axis(box, free), labels[free])
        return box

    def _declare(self, box: Box, inherited: Iterable[int] = ()) -> None:
        """Note what a new rectangle asks: slabs take what lies on them along, rows lose equally many."""
        for axis, slab in box.slabs.items():
            if axis not in inherited:
                self._lie(slab, np.moveaxis(box.ids, axis, 0).reshape(len(slab), -1))
        if box.slabs:
            self.alike(box, box.ids.shape[box.free])

    def _reshaped(
        self,
        box: Box,
        old: Sequence[int],
        new: Sequence[int],
        runs: list[tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> Box | None:
        touched = [(left, right) for left, right in runs if box.axes & set(left)]
        where = {
            a: b for left, right in touched if (pair := _renamed(left, right, old, new)) for a, b in [pair]
        }
        if box.axes <= where.keys():
            return box.moved(where, len(new))
        self._align_if_crossed(box, [left for left, right in touched if len(right) < len(left)])
        spread = [size if any(a in left for left, _ in touched) else 1 for a, size in enumerate(old)]
        target = [size if any(b in right for _, right in touched) else 1 for b, size in enumerate(new)]

        def carried(ids: IntArray) -> IntArray:
            return np.broadcast_to(ids, spread).reshape(target)

        full = carried(box.ids)
        axes = varying_axes(full)
        if not axes:
            return None
        position = np.arange(old[box.free]).reshape([-1 if a == box.free else 1 for a in range(len(old))])
        free = max(set(varying_axes(carried(position))) & set(axes), default=axes[-1])
        ids = squeezed(full, axes)
        if len(axes) == 1:
            return Box(ids, free, filler=box.filler)
        return self._rectangle(
            ids, free, axes, [carried(_upright(s, a, len(old))) for a, s in box.slabs.items()]
        )

    def _rectangle(self, ids: IntArray, free: int, axes: Sequence[int], old_slabs: Sequence[IntArray]) -> Box:
        """A rectangle from reshaped labels; slabs that still lie along one axis are kept, the others are made."""
        kept: dict[int, IntArray] = {}
        divided: list[IntArray] = []
        for slab in old_slabs:
            along = varying_axes(slab)
            if len(along) == 1 and along[0] != free:
                kept[along[0]] = squeezed(slab, along).reshape(-1)
            elif along:
                divided.append(slab)
        slabs = {
            axis: kept[axis] if axis in kept else self._fresh_slab(ids, axis) for axis in axes if axis != free
        }
        box = Box(ids, free, slabs)
        self._declare(box, kept)
        for slab in divided:
            self.block(np.unique(slab), "a view divides this axis further")
            for axis in set(varying_axes(slab)) - {free} - kept.keys():
                lying = np.moveaxis(squeezed(slab, varying_axes(slab)), axis, 0)
                self._lie(slabs[axis], lying.reshape(len(slabs[axis]), -1))
        return box

    def _lie(self, slab: IntArray, lying: IntArray) -> None:
        """Labels `lying` `[slab, n]` leave with those of `slab`; a batch merged into the axis repeats rows."""
        _, first = np.unique(slab, return_index=True)
        self.relations.slabs.append((np.repeat(slab[first], lying.shape[1]), lying[first].ravel()))

    def _fresh_slab(self, ids: IntArray, axis: int) -> IntArray:
        """A label for each index of an axis; indices with the same labels on them (a merged batch) share one."""
        lying = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
        if len(np.unique(lying[:, 0])) == len(lying):
            return self.fresh(len(lying))
        _, index = np.unique(lying, axis=0, return_inverse=True)
        return self.fresh(int(index.max()) + 1)[index.reshape(-1)]

    def _align_if_crossed(self, box: Box, merged: Iterable[tuple[int, ...]]) -> None:
        """Rows may choose for themselves only while the free axis stays the innermost one of a merge."""
        for axes in merged:
            inside = sorted(box.axes & set(axes))
            if len(inside) > 1 and box.free in inside and box.free != inside[-1]:
                self.axis(box, box.free)

    def take(self, boxes: Boxes, axis: int, index: slice, size: int) -> Boxes:
        """Boxes after `x[index]` along one axis."""
        box = covering(boxes, axis)
        if box is None or index == slice(0, size, 1):
            return boxes
        start, stop, step = index.indices(size)
        if step > 1:
            self._every(box, axis, step)
        elif not box.filler:
            self.equal_parts(box, axis, [start, stop])
        at: list[slice] = [slice(None)] * box.ids.ndim
        at[axis] = index
        slabs = {a: s[index] if a == axis else s for a, s in box.slabs.items()}
        taken = _shrunk(Box(box.ids[tuple(at)], box.free, slabs, box.filler))
        return tuple(b for b in boxes if b is not box) + taken

    def _every(self, box: Box, axis: int, step: int) -> None:
        """`x[start::step]`: the positions of one stride leave together, so that the next ones keep their phase."""
        size = box.ids.shape[axis]
        labels = self.axis(box, axis)
        if size % step:
            self.freeze(labels, f"a slice takes every {step} of {size} positions")
            return
        phases = labels.reshape(-1, step)
        self.tie(np.repeat(phases[:, 0], step), phases)

    def select(self, boxes: Boxes, axis: int, index: int) -> Boxes:
        """Boxes after `x[index]` with a single number: the axis disappears, and that index cannot go."""
        box = covering(boxes, axis)
        rest = tuple(b for b in boxes if b is not box)
        where = {a: a - (a > axis) for b in boxes for a in b.axes}
        rank = boxes[0].ids.ndim - 1 if boxes else 0
        moved = tuple(b.moved(where, rank) for b in rest)
        if box is None:
            return moved
        if not box.filler:
            self.block(self.axis(box, axis)[[index]], "selected by a constant index")
        if not box.slabs:
            return moved
        if axis == box.free:
            return moved + tuple(line(slab, where[a], rank) for a, slab in box.slabs.items())
        slabs = {where[a]: slab for a, slab in box.slabs.items() if a != axis}
        return (*moved, Box(np.asarray(box.ids.take(index, axis)), where[box.free], slabs))

    def concatenate(self, parts: Sequence[tuple[Boxes, Sequence[int]]], axis: int) -> Boxes:
        """Boxes after `cat` along `axis`; `parts` are pairs of boxes and shape."""
        rank = len(parts[0][1])
        held = [covering(boxes, axis) for boxes, _ in parts]
        letters = [None if a == axis else chr(97 + a) for a in range(rank)]
        spans = {(box.free, box.axes) if box else None for box in held}
        whole = len(spans) == 1 and held[0] is not None and bool(held[0].slabs)
        others = [tuple(b for b in boxes if axis not in b.axes) for boxes, _ in parts]
        if not whole:
            others = [
                rest + tuple(line(self.axis(box, a), a, rank) for a in box.axes - {axis}) if box else rest
                for rest, box in zip(others, held, strict=True)
            ]
        joined = self.join(
            [(boxes, shape, letters) for boxes, (_, shape) in zip(others, parts, strict=True)], letters
        )
        if all(box is None for box in held):
            return joined
        if whole:
            return (*joined, self._cat_rectangles([box for box in held if box], axis))
        pieces = [
            self.axis(box, axis) if box else self._constant(shape[axis])
            for box, (_, shape) in zip(held, parts, strict=True)
        ]
        return (*joined, line(np.concatenate(pieces), axis, rank))

    def _constant(self, size: int) -> IntArray:
        ids = self.fresh(size)
        self.freeze(ids, "concatenated with positions that cannot go")
        return ids

    def _cat_rectangles(self, boxes: Sequence[Box], axis: int) -> Box:
        first = boxes[0]
        for box in boxes[1:]:
            for a in first.slabs.keys() - {axis}:
                self.unite(first.slabs[a], box.slabs[a])
        slabs = {
            a: np.concatenate([box.slabs[a] for box in boxes]) if a == axis else slab
            for a, slab in first.slabs.items()
        }
        result = Box(np.concatenate([box.ids for box in boxes], axis), first.free, slabs)
        self._declare(result, result.slabs)
        return result

    def pointwise(self, op: Op, inputs: Sequence[Ref]) -> Boxes:
        """Elementwise ops with broadcasting: axes meet from the right."""
        number = next(n for n in op.outputs if n is not None)
        rank = len(self.tensors[number].shape)
        letters = [chr(97 + a) for a in range(rank)]
        operands = [(self.of(ref), self.shape(ref), letters[rank - len(self.shape(ref)) :]) for ref in inputs]
        return self.join(operands, letters)


Rule = Callable[[Flow, Op], None]


def _compact(ids: IntArray, order: Sequence[int]) -> IntArray:
    return np.moveaxis(ids, order, range(len(order))).reshape([ids.shape[a] for a in order])


def _upright(values: IntArray, axis: int, rank: int) -> IntArray:
    return values.reshape([-1 if a == axis else 1 for a in range(rank)])


def _shrunk(box: Box) -> Boxes:
    """A rectangle cut down to one index on an axis loses that axis."""
    slabs = {a: s for a, s in box.slabs.items() if len(s) > 1}
    if box.ids.shape[box.free] > 1:
        return (Box(box.ids, box.free, slabs, box.filler),)
    return tuple(line(slab, a, box.ids.ndim) for a, slab in slabs.items())


def _renamed(
    left: tuple[int, ...], right: tuple[int, ...], old: Sequence[int], new: Sequence[int]
) -> tuple[int, int] | None:
    """The axis and its new name where a run only adds or drops axes of size 1."""
    a = [axis for axis in left if old[axis] > 1]
    b = [axis for axis in right if new[axis] > 1]
    return (a[0], b[0]) if len(a) == len(b) == 1 else None
