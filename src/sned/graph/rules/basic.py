"""Elementwise ops, copies, ops that make tensors, and ops that nobody has written a rule for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref, leaves
from sned.graph.joins import join, pointwise
from sned.graph.labels import lift
from sned.graph.rules.registry import Arguments, resize, rule
from sned.graph.views import take

if TYPE_CHECKING:
    from sned.graph.sizes import Sizes

ELEMENTWISE = (
    "pointwise", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "hardtanh", "hardtanh_", "relu6",
    "leaky_relu", "leaky_relu_", "elu", "elu_", "celu", "selu", "prelu", "_prelu_kernel", "silu", "silu_", "mish",
    "mish_", "gelu", "gelu_", "softplus", "logit", "native_dropout", "dropout", "masked_fill", "masked_fill_", "where",
    "clone", "_to_copy", "contiguous", "alias", "detach", "detach_", "copy_", "lift_fresh", "lift_fresh_copy",
    "nan_to_num", "clamp", "clamp_", "floor_divide", "zero_", "fill_", "bernoulli_", "div_", "add_", "mul_",
    "_conj", "_neg_view", "view_as_real_copy", "addcmul", "addcdiv", "lerp", "rsub", "threshold", "threshold_",
    "hardshrink", "softshrink", "logical_not", "isnan", "relu", "relu_", "abs_", "glu_jvp", "bitwise_not",
    "resolve_conj", "complex", "polar",
)  # fmt: skip
"""Ops that work position by position; the `pointwise` tag of PyTorch misses some of them."""


@rule(*ELEMENTWISE)
def elementwise(flow: Flow, op: Op) -> None:
    """Axes meet from the right, with broadcasting."""
    inputs = leaves((op.args, *op.kwargs.values()), Ref)
    if any(n is not None for n in op.outputs):
        boxes = pointwise(flow, op, inputs)
        for output, number in enumerate(op.outputs):
            if number is not None:
                flow.put(op, boxes, output)


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def uniform(flow: Flow, op: Op) -> None:
    """The same value everywhere: such a tensor takes whatever size its neighbours have."""
    number = op.outputs[0]
    if number is not None:
        shape = flow.tensors[number].shape
        flow.put(op, flow.filler(shape, range(len(shape)), lifted=not op.name.endswith("zeros")))


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "bernoulli",
      "uniform_", "normal_", "exponential_", "geometric_", "log_normal_", "normal")  # fmt: skip
def like(flow: Flow, op: Op) -> None:
    """Values of the shape of another tensor."""
    boxes = flow.of(op.args[0])
    flow.put(op, boxes if op.name == "zeros_like" else lift(boxes))


@resize("zeros", "ones", "full", "empty")
def created(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """The size is the first argument."""
    return (sizes.scaled(op, args[0]), *args[1:])


@resize("new_zeros", "new_ones", "new_full", "new_empty")
def created_like(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """The size is the second argument."""
    return (args[0], sizes.scaled(op, args[1]), *args[2:])


@rule("log_sigmoid_forward")
def log_sigmoid(flow: Flow, op: Op) -> None:
    """Element by element; the second output is for the way back."""
    flow.put(op, lift(flow.of(op.args[0])))


@rule("arange", "linspace", "eye", "scalar_tensor", "rand", "randn", "randint", "tril_indices", "_local_scalar_dense",
      "_assert_async", "sym_size", "is_nonzero", "item")  # fmt: skip
def constant(flow: Flow, op: Op) -> None:
    """Values that depend on the position: no labels, so whatever meets them stays."""


@rule("glu")
def glu(flow: Flow, op: Op) -> None:
    """The first half of an axis times the sigmoid of the second: halves meet."""
    ref, given = op.args[0], op.args[1] if len(op.args) > 1 else -1
    shape = flow.shape(ref)
    axis, half = given % len(shape), shape[given] // 2
    out = [half if a == axis else size for a, size in enumerate(shape)]
    letters = [chr(97 + a) for a in range(len(shape))]
    halves = [take(flow, flow.of(ref), axis, slice(i * half, (i + 1) * half, 1), shape[axis]) for i in (0, 1)]
    flow.put(op, join(flow, [(boxes, out, letters) for boxes in halves], letters))


@rule("_weight_norm_interface")
def weight_norm(flow: Flow, op: Op) -> None:
    """`g v / |v|`, the norm taken over all axes but one."""
    v, g = op.args[0], op.args[1]
    letters = [chr(97 + a) for a in range(len(flow.shape(v)))]
    flow.put(
        op, join(flow, [(flow.of(v), flow.shape(v), letters), (flow.of(g), flow.shape(g), letters)], letters)
    )


@rule("unknown")
def unknown(flow: Flow, op: Op) -> None:
    """No rule: everything that the op touches stays."""
    for ref in leaves((op.args, *op.kwargs.values()), Ref):
        flow.freeze_boxes(flow.of(ref), f"sned has no rule for {op.target}")
