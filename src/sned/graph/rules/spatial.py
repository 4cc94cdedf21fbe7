"""Pooling, padding and resampling: ops that work on the trailing axes and leave channels alone."""

from __future__ import annotations

import numpy as np

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.joins import concatenate, join
from sned.graph.labels import Box, Boxes, covering, line
from sned.graph.rules.registry import rule
from sned.graph.views import reshape, take

POOLS = {
    "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "avg_pool2d": 2, "avg_pool3d": 3, "avg_pool1d": 1,
    "max_pool1d": 1, "max_pool2d": 2, "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "adaptive_avg_pool1d": 1,
    "adaptive_max_pool1d": 1, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3, "upsample_nearest1d": 1,
    "upsample_nearest2d": 2, "upsample_nearest3d": 3, "upsample_bilinear2d": 2, "_upsample_bilinear2d_aa": 2,
    "upsample_bicubic2d": 2, "_upsample_bicubic2d_aa": 2, "upsample_linear1d": 1, "upsample_trilinear3d": 3,
    "_upsample_nearest_exact2d": 2, "_upsample_nearest_exact1d": 1, "reflection_pad1d": 1, "reflection_pad2d": 2,
    "reflection_pad3d": 3, "replication_pad1d": 1, "replication_pad2d": 2, "replication_pad3d": 3,
}  # fmt: skip
"""How many trailing axes each op works on."""


def slide(flow: Flow, op: Op, ref: Ref, axes: set[int], reason: str) -> None:
    """Labels on `axes` stay, the others pass on to every output."""
    for axis in axes:
        if (box := covering(flow.of(ref), axis)) is not None:
            flow.freeze(flow.axis(box, axis), reason)
    rest = tuple(part for box in flow.of(ref) for part in _beside(flow, box, axes))
    for output, number in enumerate(op.outputs):
        if number is not None:
            flow.put(op, rest, output)


def _beside(flow: Flow, box: Box, axes: set[int]) -> Boxes:
    """What a box says of the axes that are not among some."""
    if not box.axes & axes:
        return (box,)
    return tuple(line(flow.axis(box, a), a, box.ids.ndim, lifted=box.lifted) for a in sorted(box.axes - axes))


@rule(*POOLS)
def pool(flow: Flow, op: Op) -> None:
    """A window slides over the trailing axes."""
    rank = len(flow.shape(op.args[0]))
    slide(flow, op, op.args[0], set(range(rank - POOLS[op.name], rank)), "an axis that a window slides over")


@rule("tril", "triu")
def triangle(flow: Flow, op: Op) -> None:
    """Zeros beyond a diagonal of the last two axes."""
    rank = len(flow.shape(op.args[0]))
    slide(flow, op, op.args[0], {rank - 2, rank - 1}, "what lies beyond a diagonal depends on the position")


@rule("unfold")
def windows(flow: Flow, op: Op) -> None:
    """Windows along one axis, each on a new last axis."""
    ref, rank = op.args[0], len(flow.shape(op.args[0]))
    slide(flow, op, ref, {op.args[1] % rank}, "an axis that a window slides over")
    same = {axis: axis for axis in range(rank)}
    flow.put(op, tuple(box.moved(same, rank + 1) for box in flow.boxes[_made(op)]))


@rule("im2col")
def im2col(flow: Flow, op: Op) -> None:
    """`(B, C, H, W)` to `(B, C windows, positions)`: a channel goes with all places of its window."""
    ref, window = op.args[0], op.args[1][0] * op.args[1][1]
    slide(flow, op, ref, {2, 3}, "an axis that a window slides over")
    box = covering(flow.boxes[_made(op)], 1)
    flow.put(op, (line(np.repeat(flow.axis(box, 1), window), 1, 3),) if box is not None else ())


@rule("col2im")
def col2im(flow: Flow, op: Op) -> None:
    """`(B, C windows, positions)` to `(B, C, H, W)`, the inverse."""
    ref, window = op.args[0], op.args[2][0] * op.args[2][1]
    slide(flow, op, ref, {2}, "an axis that a window slides over")
    box = covering(flow.boxes[_made(op)], 1)
    if box is None:
        flow.put(op, ())
        return
    places = flow.axis(box, 1).reshape(-1, window)
    flow.unite(np.broadcast_to(places[:, :1], places.shape), places)
    flow.put(op, (line(places[:, 0], 1, 4),))


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(flow: Flow, op: Op) -> None:
    """Values at given places; channels pass."""
    flow.freeze_boxes(flow.of(op.args[1]), "coordinates")
    slide(flow, op, op.args[0], set(range(2, len(flow.shape(op.args[0])))), "an axis that is sampled")


@rule("max_unpool2d", "max_unpool3d")
def unpool(flow: Flow, op: Op) -> None:
    """Values back to the places that pooling took them from: channels of both meet."""
    axes, both = set(range(2, len(flow.shape(op.args[0])))), list(op.args[:2])
    for ref in both:
        slide(flow, op, ref, axes, "an axis that a window slides over")
    letters = ["a", "b", *[None] * len(axes)]
    operands = [
        (tuple(b for box in flow.of(ref) for b in _beside(flow, box, axes)), flow.shape(ref), letters)
        for ref in both
    ]
    flow.put(op, join(flow, operands, letters))


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(flow: Flow, op: Op) -> None:
    """Every frequency is made of every position along the axes that are transformed; the others pass."""
    rank = len(flow.shape(op.args[0]))
    slide(
        flow, op, op.args[0], {axis % rank for axis in op.args[1]}, "an axis that a Fourier transform mixes"
    )


def _made(op: Op) -> int:
    number = op.outputs[0]
    assert number is not None
    return number


@rule("constant_pad_nd")
def pad(flow: Flow, op: Op) -> None:
    """Constants before and after along some axes; they stay, the rest passes."""
    ref, amounts = op.args[0], op.args[1]
    boxes, shape = flow.of(ref), list(flow.shape(ref))
    for i in range(0, len(amounts), 2):
        axis, before, after = len(shape) - 1 - i // 2, int(amounts[i]), int(amounts[i + 1])
        if before < 0 or after < 0:
            boxes = take(
                flow, boxes, axis, slice(max(-before, 0), shape[axis] - max(-after, 0), 1), shape[axis]
            )
            shape[axis] -= max(-before, 0) + max(-after, 0)
        ends = [max(before, 0), max(after, 0)]
        if covering(boxes, axis) is not None and any(ends):
            parts: list[tuple[Boxes, list[int]]] = [(boxes, list(shape))]
            edges = [[*shape[:axis], n, *shape[axis + 1 :]] for n in ends]
            others = tuple(line_like(flow, box) for box in boxes if axis not in box.axes)
            parts = [(others, edges[0])] * bool(ends[0]) + parts + [(others, edges[1])] * bool(ends[1])
            boxes = concatenate(flow, parts, axis)
        shape[axis] += sum(ends)
    flow.put(op, boxes)


def line_like(flow: Flow, box: Box) -> Box:
    """Fresh filler labels where a box has its own: a constant takes any size."""
    return (
        Box(flow.fresh(box.ids.size).reshape(box.ids.shape), box.free, filler=True) if not box.slabs else box
    )


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, op: Op) -> None:
    """`(B, C r r, H, W)` to `(B, C, H r, W r)`."""
    ref, r = op.args[0], op.args[1]
    *lead, channels, height, width = shape = flow.shape(ref)
    n, c = len(lead), channels // (r * r)
    split = (*lead, c, r, r, height, width)
    boxes = reshape(flow, flow.of(ref), shape, split)
    where = {**{a: a for a in range(n + 1)}, n + 1: n + 2, n + 2: n + 4, n + 3: n + 1, n + 4: n + 3}
    moved = tuple(box.moved(where, n + 5) for box in boxes)
    flow.put(op, reshape(flow, moved, (*lead, c, height, r, width, r), (*lead, c, height * r, width * r)))


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, op: Op) -> None:
    """`(B, C, H r, W r)` to `(B, C r r, H, W)`."""
    ref, r = op.args[0], op.args[1]
    *lead, c, height, width = shape = flow.shape(ref)
    n = len(lead)
    boxes = reshape(flow, flow.of(ref), shape, (*lead, c, height // r, r, width // r, r))
    where = {**{a: a for a in range(n + 1)}, n + 1: n + 3, n + 2: n + 1, n + 3: n + 4, n + 4: n + 2}
    moved = tuple(box.moved(where, n + 5) for box in boxes)
    out = (*lead, c * r * r, height // r, width // r)
    flow.put(op, reshape(flow, moved, (*lead, c, r, r, height // r, width // r), out))
