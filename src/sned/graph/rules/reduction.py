"""Sums, means, extremes and softmax over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.joins import join, pointwise
from sned.graph.labels import Boxes, covering, lift
from sned.graph.rules.registry import argument, rule


def reduced_axes(rank: int, given: Any) -> tuple[int, ...]:
    """Axes to reduce, counted from the front; none given means all."""
    if given is None or given == ():
        return tuple(range(rank))
    listed = given if isinstance(given, Sequence) else (given,)
    return tuple(axis % rank for axis in listed) if rank else ()


def span(flow: Flow, ref: Ref, axes: Sequence[int]) -> None:
    """Note that a statistic spans these axes."""
    for box in flow.of(ref):
        for axis in box.axes & set(axes):
            flow.spans(flow.axis(box, axis))


def reduce(flow: Flow, ref: Ref, axes: Sequence[int], *, keepdim: bool) -> Boxes:
    """Boxes after summing over `axes`."""
    shape = flow.shape(ref)
    letters = [chr(97 + a) for a in range(len(shape))]
    out = [None if a in axes else letter for a, letter in enumerate(letters) if keepdim or a not in axes]
    return join(flow, [(flow.of(ref), shape, letters)], out)


def _reduce_op(flow: Flow, op: Op, position: int, *, exact: bool) -> None:
    ref = op.args[0]
    rank = len(flow.shape(ref))
    axes = reduced_axes(rank, argument(op, position, "dim"))
    number = next(n for n in op.outputs if n is not None)
    if not exact:
        span(flow, ref, axes)
    if _gives_places(flow, op):
        for box in flow.of(ref):
            for axis in box.axes & set(axes):
                flow.freeze(flow.axis(box, axis), "its places are told by number")
    boxes = reduce(flow, ref, axes, keepdim=len(flow.tensors[number].shape) == rank)
    boxes = lift(boxes) if op.name == "logsumexp" else boxes
    for output, n in enumerate(op.outputs):
        if n is not None:
            flow.put(op, boxes, output)


def _gives_places(flow: Flow, op: Op) -> bool:
    """Whether an op tells where along the axis it found something, the class of an image say, and that is asked for."""
    if op.name in ("argmax", "argmin"):
        return True
    return op.name in ("max", "min", "median", "nanmedian", "mode") and any(
        number in flow.read for number in op.outputs[1:]
    )


@rule("sum")
def total(flow: Flow, op: Op) -> None:
    """A sum does not notice zeros, where what goes is zero: `join` sees to that."""
    _reduce_op(flow, op, 1, exact=True)


@rule("mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "argmax", "argmin", "prod",
      "any", "all", "logsumexp", "median", "nanmedian", "mode", "nanmean")  # fmt: skip
def statistic(flow: Flow, op: Op) -> None:
    """Statistics that change when positions go, even zero ones. `max(a, b)` of two tensors is elementwise."""
    if len(op.args) > 1 and isinstance(op.args[1], Ref):
        flow.put(op, pointwise(flow, op, op.args[:2]))
        return
    _reduce_op(flow, op, 1, exact=False)


@rule("linalg_vector_norm", "norm")
def norm(flow: Flow, op: Op) -> None:
    """A vector norm does not notice zeros."""
    _reduce_op(flow, op, 2, exact=True)


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss")
def loss(flow: Flow, op: Op) -> None:
    """Element by element, then a mean or a sum over all, unless neither is asked for."""
    refs = [a for a in op.args if isinstance(a, Ref)]
    letters = [chr(97 + a) for a in range(max(len(flow.shape(ref)) for ref in refs))]
    operands = [
        (flow.of(ref), shape, letters[len(letters) - len(shape) :])
        for ref in refs
        for shape in [flow.shape(ref)]
    ]
    boxes, number = join(flow, operands, letters, lifts=any), op.outputs[0]
    if number is not None and flow.tensors[number].shape:
        flow.put(op, lift(boxes))
        return
    for box in boxes:
        for axis in box.axes:
            flow.spans(flow.axis(box, axis))


@rule("nll_loss_forward", "nll_loss2d_forward")
def likelihood(flow: Flow, op: Op) -> None:
    """Of every row the class that is its target."""
    for ref in (a for a in op.args if isinstance(a, Ref)):
        flow.freeze_boxes(flow.of(ref), "its classes are told by number")


@rule("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "softmax")
def softmax(flow: Flow, op: Op) -> None:
    """Same shape; the axis is spanned."""
    ref = op.args[0]
    rank = len(flow.shape(ref))
    axes = reduced_axes(rank, argument(op, 1, "dim"))
    span(flow, ref, axes)
    if op.name.startswith("cum"):
        for box in flow.of(ref):
            for axis in box.axes & set(axes):
                flow.freeze(flow.axis(box, axis), "a running sum depends on the position")
    flow.put(op, lift(flow.of(ref)))


@rule("topk", "sort", "argsort", "kthvalue")
def ordered(flow: Flow, op: Op) -> None:
    """Sorting along an axis: that axis stays, the others pass."""
    ref = op.args[0]
    rank = len(flow.shape(ref))
    position = {"topk": 2, "sort": 1, "argsort": 1, "kthvalue": 2}[op.name]
    axis = int(argument(op, position, "dim", -1)) % max(rank, 1)
    if (box := covering(flow.of(ref), axis)) is not None:
        flow.freeze(flow.axis(box, axis), "sorted along this axis")
    rest = tuple(box for box in flow.of(ref) if axis not in box.axes)
    for output, number in enumerate(op.outputs):
        if number is not None:
            flow.put(op, rest, output)
