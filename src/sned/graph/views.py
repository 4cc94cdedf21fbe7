"""Labels of one tensor, seen in another shape or in part: views, slices, a single index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from sned.graph.flow import Flow
from sned.graph.ir import IntArray
from sned.graph.labels import Box, Boxes, covering, line, matching_runs, squeezed, upright, varying_axes


def reshape(flow: Flow, boxes: Boxes, old: Sequence[int], new: Sequence[int]) -> Boxes:
    """Boxes after a view of shape `old` as shape `new` (row-major)."""
    runs = matching_runs(old, new)
    boxes = _without_conflicts(flow, boxes, old, runs)
    return tuple(moved for box in boxes if (moved := _reshaped(flow, box, old, new, runs)) is not None)


def _without_conflicts(
    flow: Flow, boxes: Boxes, old: Sequence[int], runs: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Boxes:
    """Where two boxes run together into one axis, drop fillers, else make one rectangle of them."""
    for left, right in runs:
        if not right or sum(old[a] > 1 for a in left) < 2:
            continue  # nothing is merged
        inside = [box for box in boxes if box.axes & set(left)]
        if len(inside) < 2:
            continue
        for box in [b for b in inside if b.filler]:
            flow.block(box.ids, "merged with another axis")
        solid = [b for b in inside if not b.filler] or inside[:1]
        boxes = tuple(b for b in boxes if b not in inside)
        boxes += (solid[0] if len(solid) == 1 else _product(flow, solid),)
    # A filler that is merged with an axis without labels is repeated values at fixed places.
    return boxes


def _product(flow: Flow, boxes: Sequence[Box]) -> Box:
    """One rectangle with the labels of several boxes along its axes.

    Free is the axis that was labelled last (dimensions come after heads in a parameter), whatever the order here,
    so that two products of the same axes ask the same.
    """
    labels = {axis: flow.axis(box, axis) for box in boxes for axis in box.axes}
    axes = sorted(labels, key=lambda axis: (int(labels[axis][0]), axis))
    ids = flow.product([labels[axis] for axis in axes])
    ids = ids.transpose(np.argsort(axes)).reshape(
        [len(labels.get(a, (0,))) for a in range(boxes[0].ids.ndim)]
    )
    free = axes[-1]
    slabs = {a: labels[a] for a in axes if a != free}
    box = Box(ids, free, slabs, lifted=any(each.lifted for each in boxes))
    flow.declare(box)
    flow.unite(flow.axis(box, free), labels[free])
    return box


def _reshaped(
    flow: Flow,
    box: Box,
    old: Sequence[int],
    new: Sequence[int],
    runs: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> Box | None:
    touched = [(left, right) for left, right in runs if box.axes & set(left)]
    where = {a: b for left, right in touched if (pair := _renamed(left, right, old, new)) for a, b in [pair]}
    if box.axes <= where.keys():
        return box.moved(where, len(new))
    _align_if_crossed(flow, box, [left for left, right in touched if len(right) < len(left)])
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
        return Box(ids, free, filler=box.filler, lifted=box.lifted)
    slabs = [carried(upright(slab, a, len(old))) for a, slab in box.slabs.items()]
    return replace(_rectangle(flow, ids, free, axes, slabs), lifted=box.lifted)


def _rectangle(
    flow: Flow, ids: IntArray, free: int, axes: Sequence[int], old_slabs: Sequence[IntArray]
) -> Box:
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
        axis: kept[axis] if axis in kept else _fresh_slab(flow, ids, axis) for axis in axes if axis != free
    }
    box = Box(ids, free, slabs)
    flow.declare(box, kept)
    for slab in divided:
        flow.block(np.unique(slab), "a view divides this axis further")
        for axis in set(varying_axes(slab)) - {free} - kept.keys():
            lying = np.moveaxis(squeezed(slab, varying_axes(slab)), axis, 0)
            flow.lie(slabs[axis], lying.reshape(len(slabs[axis]), -1))
    return box


def _fresh_slab(flow: Flow, ids: IntArray, axis: int) -> IntArray:
    """A label for each index of an axis; indices with the same labels on them (a merged batch) share one."""
    lying = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    if len(np.unique(lying[:, 0])) == len(lying):
        return flow.fresh(len(lying))
    _, index = np.unique(lying, axis=0, return_inverse=True)
    return flow.fresh(int(index.max()) + 1)[index.reshape(-1)]


def _align_if_crossed(flow: Flow, box: Box, merged: Iterable[tuple[int, ...]]) -> None:
    """Rows may choose for themselves only while the free axis stays the innermost one of a merge."""
    for axes in merged:
        inside = sorted(box.axes & set(axes))
        if len(inside) > 1 and box.free in inside and box.free != inside[-1]:
            flow.axis(box, box.free)


def take(
    flow: Flow, boxes: Boxes, axis: int, index: slice, size: int, beside: Sequence[slice] | None = None
) -> Boxes:
    """Boxes after `x[index]` along one axis; `beside` as in `Flow.equal_parts`."""
    box = covering(boxes, axis)
    if box is None or index == slice(0, size, 1):
        return boxes
    start, stop, step = index.indices(size)
    if step > 1:
        _every(flow, box, axis, step)
    elif not box.filler:
        flow.equal_parts(box, axis, [start, stop], beside)
    at: list[slice] = [slice(None)] * box.ids.ndim
    at[axis] = index
    slabs = {a: s[index] if a == axis else s for a, s in box.slabs.items()}
    taken = _shrunk(replace(box, ids=box.ids[tuple(at)], slabs=slabs))
    for part in taken if beside is not None and axis == box.free else ():
        if part.slabs:
            flow.alike(part, part.ids.shape[axis])  # every row gives equally many
    return tuple(b for b in boxes if b is not box) + taken


def _every(flow: Flow, box: Box, axis: int, step: int) -> None:
    """`x[start::step]`: the positions of one stride leave together, so that the next ones keep their phase."""
    size = box.ids.shape[axis]
    labels = flow.axis(box, axis)
    if size % step:
        flow.freeze(labels, f"a slice takes every {step} of {size} positions")
        return
    phases = labels.reshape(-1, step)
    flow.tie(np.repeat(phases[:, 0], step), phases)


def pick(flow: Flow, boxes: Boxes, axis: int, index: int) -> Boxes:
    """Boxes after `x[index]` with a single number: the axis disappears, and that index cannot go."""
    box = covering(boxes, axis)
    rest = tuple(b for b in boxes if b is not box)
    where = {a: a - (a > axis) for b in boxes for a in b.axes}
    rank = boxes[0].ids.ndim - 1 if boxes else 0
    moved = tuple(b.moved(where, rank) for b in rest)
    if box is None:
        return moved
    if not box.filler:
        flow.block(flow.axis(box, axis)[[index]], "selected by a constant index")
    if not box.slabs:
        return moved
    if axis == box.free:
        return moved + tuple(line(slab, where[a], rank, lifted=box.lifted) for a, slab in box.slabs.items())
    slabs = {where[a]: slab for a, slab in box.slabs.items() if a != axis}
    ids = np.asarray(box.ids.take(index, axis))
    return (*moved, Box(ids, where[box.free], slabs, lifted=box.lifted))


def _shrunk(box: Box) -> Boxes:
    """A rectangle cut down to one index on an axis loses that axis."""
    slabs = {a: s for a, s in box.slabs.items() if len(s) > 1}
    if box.ids.shape[box.free] > 1:
        return (replace(box, slabs=slabs),)
    return tuple(line(slab, a, box.ids.ndim, lifted=box.lifted) for a, slab in slabs.items())


def _renamed(
    left: tuple[int, ...], right: tuple[int, ...], old: Sequence[int], new: Sequence[int]
) -> tuple[int, int] | None:
    """The axis and its new name where a run only adds or drops axes of size 1."""
    a = [axis for axis in left if old[axis] > 1]
    b = [axis for axis in right if new[axis] > 1]
    return (a[0], b[0]) if len(a) == len(b) == 1 else None
