"""Products that sum over an axis: linear layers, batched products, convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.joins import join
from sned.graph.labels import Boxes, covering, lift
from sned.graph.rules.basic import unknown
from sned.graph.rules.registry import Arguments, resize, rule
from sned.graph.views import reshape

if TYPE_CHECKING:
    from sned.graph.sizes import Sizes


def product(flow: Flow, left: Ref, a: str, right: Ref, b: str, out: str) -> Boxes:
    """An einsum of two tensors: `product(flow, x, "ij", w, "jk", "ik")`."""
    return join(flow, [(flow.of(left), flow.shape(left), a), (flow.of(right), flow.shape(right), b)], out)


def plus(flow: Flow, boxes: Boxes, shape: tuple[int, ...], bias: Ref | None) -> Boxes:
    """The boxes of a result to which a broadcast bias is added."""
    if bias is None:
        return boxes
    letters = [chr(97 + a) for a in range(len(shape))]
    other = flow.shape(bias)
    beside = flow.of(bias), other, letters[len(letters) - len(other) :]
    return join(flow, [(boxes, shape, letters), beside], letters, lifts=any)


def result_shape(flow: Flow, op: Op) -> tuple[int, ...]:
    """Shape of the first output."""
    number = op.outputs[0]
    assert number is not None
    return flow.tensors[number].shape


@rule("mm")
def mm(flow: Flow, op: Op) -> None:
    """Matrix product."""
    flow.put(op, product(flow, op.args[0], "ij", op.args[1], "jk", "ik"))


@rule("bmm")
def bmm(flow: Flow, op: Op) -> None:
    """Batched matrix product; the batch axis may hold heads."""
    flow.put(op, product(flow, op.args[0], "bij", op.args[1], "bjk", "bik"))


@rule("mv", "dot", "vdot")
def mv(flow: Flow, op: Op) -> None:
    """Matrix or vector with a vector."""
    letters = "ij"[2 - len(flow.shape(op.args[0])) :]
    flow.put(op, product(flow, op.args[0], letters, op.args[1], "j", letters[:-1]))


@rule("addmm")
def addmm(flow: Flow, op: Op) -> None:
    """Bias plus matrix product."""
    boxes = product(flow, op.args[1], "ij", op.args[2], "jk", "ik")
    flow.put(op, plus(flow, boxes, result_shape(flow, op), op.args[0]))


@rule("baddbmm")
def baddbmm(flow: Flow, op: Op) -> None:
    """Bias plus batched product."""
    boxes = product(flow, op.args[1], "bij", op.args[2], "bjk", "bik")
    flow.put(op, plus(flow, boxes, result_shape(flow, op), op.args[0]))


@rule("_trilinear")
def trilinear(flow: Flow, op: Op) -> None:
    """Three tensors, each stretched along some axes, are multiplied and summed over some: `nn.Bilinear`."""
    refs, stretched, summed = op.args[:3], op.args[3:6], op.args[6]
    letters = [chr(97 + a) for a in range(len(flow.shape(refs[0])) + len(stretched[0]))]
    operands = [
        (flow.of(ref), flow.shape(ref), [letter for a, letter in enumerate(letters) if a not in axes])
        for ref, axes in zip(refs, stretched, strict=True)
    ]
    flow.put(op, join(flow, operands, [letter for a, letter in enumerate(letters) if a not in summed]))


@rule("_cdist_forward", "_euclidean_dist")
def distances(flow: Flow, op: Op) -> None:
    """The distance of every row to every other: what both lack is not noticed."""
    rank = max(len(flow.shape(ref)) for ref in op.args[:2])
    lead = [chr(97 + a) for a in range(rank - 2)]
    operands = []
    for ref, row in zip(op.args[:2], "xy", strict=True):
        boxes, shape = flow.of(ref), flow.shape(ref)
        operands.append((boxes, shape, [*lead, row, "z"][-len(shape) :]))
        box = covering(boxes, len(shape) - 1)
        if box is not None and box.lifted:
            flow.spans(flow.axis(box, len(shape) - 1))
    flow.put(op, lift(join(flow, operands, [*lead, "x", "y"])))


@rule("_grouped_mm")
def grouped_mm(flow: Flow, op: Op) -> None:
    """Rows sorted by expert, each times the matrix of its own; the experts stay, as they are chosen by number."""
    x, experts = op.args[0], op.args[1]
    if (len(flow.shape(x)), len(flow.shape(experts))) != (2, 3):
        unknown(flow, op)
        return
    for box in flow.of(experts):
        if 0 in box.axes:
            flow.freeze(flow.axis(box, 0), "chosen by number")
        for axis in box.axes - {0}:  # the kernel reads 16 bytes at a time
            size, at_once = flow.shape(experts)[axis], 16 // _bytes(flow.tensors[experts.id].dtype)
            if size % at_once == 0:
                flow.equal_parts(box, axis, [size // at_once])
    flow.put(op, product(flow, x, "tk", experts, "ekn", "tn"))


def _bytes(dtype: str) -> int:
    return 2 if dtype in ("float16", "bfloat16") else 4


@rule("convolution")
def convolution(flow: Flow, op: Op) -> None:
    """Convolution of any rank, grouped or depthwise, transposed too.

    The input channels are seen as (groups, inputs of a group), the weight as (groups, outputs, inputs): groups meet
    groups, and the inputs inside a group meet an axis that all groups share. An axis along which the kernel has one
    position is not slid over: it passes.
    """
    x, weight, bias = op.args[0], op.args[1], op.args[2]
    transposed, groups = op.args[6], op.args[8]
    rank = len(flow.shape(x)) - 2
    space, kernel = "stuvw"[:rank], [None] * rank
    passing = [space[i] if still else None for i, still in enumerate(_still(flow, op, rank))]
    moving = {i + 2 for i, letter in enumerate(passing) if letter is None}
    for ref, axes in ((x, moving), (weight, set(range(2, rank + 2)))):
        for box in flow.of(ref):
            for axis in box.axes & axes:
                flow.freeze(flow.axis(box, axis), "an axis that a convolution slides over")
    batch, channels, *size = flow.shape(x)
    first, second, *window = flow.shape(weight)
    if transposed:  # weight [inputs, outputs of a group, ...]
        outputs = second
        w = reshape(
            flow, flow.of(weight), (first, second, *window), (groups, first // groups, second, *window)
        )
        w_shape, w_letters = (groups, first // groups, second, *window), ["g", "i", "o", *kernel]
    else:
        outputs = first // groups
        w = reshape(flow, flow.of(weight), (first, second, *window), (groups, outputs, second, *window))
        w_shape, w_letters = (groups, outputs, second, *window), ["g", "o", "i", *kernel]
    x_shape = (batch, groups, channels // groups, *size)
    boxes = reshape(flow, flow.of(x), (batch, channels, *size), x_shape)
    out = result_shape(flow, op)
    split = (out[0], groups, outputs, *out[2:])
    made = join(
        flow, [(boxes, x_shape, ["b", "g", "i", *passing]), (w, w_shape, w_letters)], ["b", "g", "o", *space]
    )
    merged = reshape(flow, made, split, out)
    if bias is not None:
        letters = ["b", "c", *space]
        merged = join(
            flow, [(merged, out, letters), (flow.of(bias), flow.shape(bias), ["c"])], letters, lifts=any
        )
    flow.put(op, merged)


def _still(flow: Flow, op: Op, rank: int) -> Iterator[bool]:
    """For each axis of space, whether the kernel stays where it is: one position, in steps of one, nothing added."""
    window = flow.shape(op.args[1])[2:]
    stride, padding, more = (
        values * (rank if len(values) == 1 else 1) for values in (*op.args[3:5], op.args[7])
    )
    for i in range(rank):
        yield (window[i], stride[i], padding[i], more[i]) == (1, 1, 0, 0)


@resize("convolution")
def convolution_groups(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """Whole groups may have left, though not the only one."""
    return args if args[8] == 1 else (*args[:8], sizes.rows(args[0].id, 1, op.args[8]), *args[9:])
