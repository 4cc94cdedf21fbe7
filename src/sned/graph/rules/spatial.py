"""Pooling, padding and resampling: ops that work on the trailing axes and leave channels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.labels import covering
from sned.graph.rules.registry import Arguments, resize, rule

if TYPE_CHECKING:
    from sned.graph.sizes import Sizes

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
    rest = tuple(box for box in flow.of(ref) if not box.axes & axes)
    for output, number in enumerate(op.outputs):
        if number is not None:
            flow.put(op, rest, output)


@rule(*POOLS)
def pool(flow: Flow, op: Op) -> None:
    """A window slides over the trailing axes."""
    rank = len(flow.shape(op.args[0]))
    slide(flow, op, op.args[0], set(range(rank - POOLS[op.name], rank)), "an axis that a window slides over")


@rule("constant_pad_nd", "pad")
def pad(flow: Flow, op: Op) -> None:
    """Padded axes stay; an axis padded by nothing passes."""
    ref, amounts = op.args[0], op.args[1]
    rank = len(flow.shape(ref))
    padded = {rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    slide(flow, op, ref, padded, "padded along this axis")


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, op: Op) -> None:
    """`(B, C r r, H, W)` to `(B, C, H r, W r)`."""
    ref, r = op.args[0], op.args[1]
    *lead, channels, height, width = shape = flow.shape(ref)
    n, c = len(lead), channels // (r * r)
    split = (*lead, c, r, r, height, width)
    boxes = flow.reshape(flow.of(ref), shape, split)
    where = {**{a: a for a in range(n + 1)}, n + 1: n + 2, n + 2: n + 4, n + 3: n + 1, n + 4: n + 3}
    moved = tuple(box.moved(where, n + 5) for box in boxes)
    flow.put(op, flow.reshape(moved, (*lead, c, height, r, width, r), (*lead, c, height * r, width * r)))


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, op: Op) -> None:
    """`(B, C, H r, W r)` to `(B, C r r, H, W)`."""
    ref, r = op.args[0], op.args[1]
    *lead, c, height, width = shape = flow.shape(ref)
    n = len(lead)
    boxes = flow.reshape(flow.of(ref), shape, (*lead, c, height // r, r, width // r, r))
    where = {**{a: a for a in range(n + 1)}, n + 1: n + 3, n + 2: n + 1, n + 3: n + 4, n + 4: n + 2}
    moved = tuple(box.moved(where, n + 5) for box in boxes)
    out = (*lead, c * r * r, height // r, width // r)
    flow.put(op, flow.reshape(moved, (*lead, c, r, r, height // r, width // r), out))
