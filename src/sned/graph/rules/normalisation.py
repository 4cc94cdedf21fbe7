"""Batch, layer, group and instance normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.joins import join
from sned.graph.labels import Boxes
from sned.graph.rules.reduction import span
from sned.graph.rules.registry import Arguments, resize, rule
from sned.graph.views import reshape

if TYPE_CHECKING:
    from sned.graph.sizes import Sizes


def per_axis(flow: Flow, ref: Ref, others: list[Ref | None], axes: list[int]) -> Boxes:
    """Boxes after a normalisation with parameters that lie along `axes`, the factor first."""
    shape = flow.shape(ref)
    letters = [chr(97 + a) for a in range(len(shape))]
    operands = [(flow.of(ref), shape, letters)]
    for other in others:
        if other is not None:
            operands.append((flow.of(other), flow.shape(other), [letters[a] for a in axes]))
    return join(flow, operands, letters, lifts=any if others[:1] == [None] else all)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_with_update", "batch_norm")  # fmt: skip
def batch_norm(flow: Flow, op: Op) -> None:
    """Statistics over batch and space: channels do not see each other (weight standardisation puts others there)."""
    vectors = [a if isinstance(a, Ref) else None for a in op.args[1:5]]
    span(flow, op.args[0], [axis for axis in range(len(flow.shape(op.args[0]))) if axis != 1])
    flow.put(op, per_axis(flow, op.args[0], vectors, [1]))


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(flow: Flow, op: Op) -> None:
    """Spans the last axes; weight and bias lie along them."""
    ref, normalised = op.args[0], op.args[1]
    rank = len(flow.shape(ref))
    axes = list(range(rank - len(normalised), rank))
    span(flow, ref, axes)
    flow.put(op, per_axis(flow, ref, [a if isinstance(a, Ref) else None for a in op.args[2:4]], axes))


@resize("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm_size(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """The normalised shape follows the last axes."""
    ref, normalised = args[0], args[1]
    first = len(sizes.old(ref)) - len(normalised)
    shape = tuple(sizes.fraction(ref.id, first + i)[0] for i in range(len(normalised)))
    return (ref, shape, *args[2:])


@rule("native_group_norm")
def group_norm(flow: Flow, op: Op) -> None:
    """Channels are seen as (groups, channels of a group), and each group is spanned."""
    ref, groups = op.args[0], op.args[6]
    batch, channels, *size = shape = flow.shape(ref)
    split = (batch, groups, channels // groups, *size)
    boxes = reshape(flow, flow.of(ref), shape, split)
    for box in boxes:
        if 2 in box.axes:
            flow.spans(box.ids if box.free == 2 and box.slabs else flow.axis(box, 2))
    merged = reshape(flow, boxes, split, shape)
    letters = [chr(97 + a) for a in range(len(shape))]
    operands = [(merged, shape, letters)]
    operands += [(flow.of(a), flow.shape(a), ["b"]) for a in op.args[1:3] if isinstance(a, Ref)]
    flow.put(op, join(flow, operands, letters))


@resize("native_group_norm")
def group_norm_size(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """`native_group_norm(x, weight, bias, N, C, HxW, groups, eps)`: channels follow, and whole groups may leave."""
    x = args[0].id
    return (*args[:4], sizes.fraction(x, 1)[0], args[5], sizes.rows(x, 1, op.args[6]), *args[7:])
