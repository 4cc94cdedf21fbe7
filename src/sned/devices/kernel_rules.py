"""Which kernel each recorded op becomes: one small rule an op family, registered by the op's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from sned.devices.builder import Builder, Rule, Step
from sned.devices.kernels import NOTHING, Extent, Kernel, Static, Workload
from sned.graph.ir import Affine, Graph, Op, Ref

RULES: dict[str, Rule] = {}

RESHAPES = frozenset(
    {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "_reshape_alias", "flatten"}
)
FOLDED_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish"})
POINTWISE = {
    "relu": "Relu", "clamp_min": "Relu", "relu6": "Clip", "hardtanh": "Clip", "clamp": "Clip",
    "leaky_relu": "LeakyRelu", "elu": "Elu", "sigmoid": "Sigmoid", "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSwish", "silu": "QuickGelu", "gelu": "Gelu", "tanh": "Tanh", "softplus": "Softplus",
    "exp": "Exp", "erf": "Erf", "sqrt": "Sqrt", "pow": "Pow", "neg": "Neg", "abs": "Abs",
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div",
}  # fmt: skip


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def workload(graph: Graph, batch: int = 1) -> Workload:
    """Say what a runtime has to run for `graph` at a batch size.

    Args:
        graph: the traced network.
        batch: inputs at once, at least 1. A network that was traced at one batch size only is costed at that.
    """
    return Builder(graph, batch, _rule_of).build()


def _rule_of(op: Op) -> Rule:
    """The rule of an op, in place or not; an op without one is taken for what moving its data costs."""
    name = op.name if op.name in RULES else op.name.removesuffix("_")
    return RULES.get(name, _pointwise if op.pointwise else _unknown)


def _plain(value: Any) -> int:
    """An integer argument, at the traced batch size."""
    return value(2) if isinstance(value, Affine) else int(value)


def _integers(value: Any, count: int) -> tuple[int, ...]:
    values = value if isinstance(value, tuple | list) else (value,)
    plain = tuple(_plain(v) for v in values)
    return plain * count if len(plain) == 1 else plain


def _argument(step: Step, place: int, default: Any) -> Any:
    return step.op.args[place] if len(step.op.args) > place else default


# --- convolutions, and what folds into them -------------------------------------------------------


@rule("convolution", "_convolution")
def _convolution(b: Builder, step: Step) -> Kernel:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = step.op.args[:9]
    rank = len(b.shape(weight.id)) - 2
    out, given = b.tensor(step.outputs[0]), b.tensor(step.live[0])
    kernel = b.shape(weight.id)[2:]
    statics: dict[str, Static] = {
        "kernel": kernel,
        "stride": _integers(stride, rank),
        "padding": _integers(padding, rank),
        "dilation": _integers(dilation, rank),
        "spatial": b.shape(given)[2:],
        "output": b.shape(out)[2:],
    }
    weights = b.elements(weight.id)
    places = prod(b.shape(given)[2:] if transposed else b.shape(out)[2:])
    per_group = b.axis(weight.id, 1)
    extents = {
        "n": b.axis(out, 0) * b.ratio,
        "ci": b.axis(given, 1),
        "co": b.axis(out, 1),
        "ci_group": b.axis(weight.id, 0) if transposed else per_group,
    }
    depthwise = (
        groups > 1 and b.shape(weight.id)[1] == 1 and b.shape(weight.id)[0] == groups and not transposed
    )
    kind = "deconv" if transposed else "depthwise" if depthwise else "conv" if groups == 1 else "grouped"
    if kind == "grouped":
        extents["co_group"] = b.axis(weight.id, 0)
        statics["groups"] = int(groups)
    made = b.kernel(
        step, kind, extents=extents, statics=statics, weights=weights, macs=weights * places * extents["n"],
        biased=bias is not None,
    )  # fmt: skip
    if bias is None:
        b.folded.setdefault(f"{step.op.module}:folded bias", NOTHING)
    return made


@rule(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
    "cudnn_batch_norm", "batch_norm", "_batch_norm_no_update", "_batch_norm_with_update",
)  # fmt: skip
def _batch_norm(b: Builder, step: Step) -> Kernel | None:
    index = b.single_producer(step, ("conv", "depthwise", "grouped", "deconv"))
    if index is None or b.kernels[index].activation:
        channels = b.input(step).channels
        return b.kernel(step, "norm", op="BatchNormalization", weights=channels * 4.0)
    b.folded.update(dict.fromkeys(b.parameters_read(step), NOTHING))
    bias = f"{b.kernels[index].module}:folded bias"
    if bias in b.folded:
        b.folded[bias] = b.kernels[index].extents["co"]
    b.fold(step, index, biased=True)
    return None


@rule(*POINTWISE)
def _named_pointwise(b: Builder, step: Step) -> Kernel | None:
    op = POINTWISE[step.op.name.removesuffix("_")]
    if op == "Gelu":
        _without_bias(b, b.single_producer(step, ("linear", "reshape")))
    index = b.single_producer(step, ("conv", "depthwise", "grouped"))
    if op in FOLDED_ACTIVATIONS and index is not None and not b.kernels[index].activation:
        b.fold(step, index, activation=op)
        return None
    return b.kernel(step, "elementwise", op=op)


def _pointwise(b: Builder, step: Step) -> Kernel:
    """An element-wise op that has no name here: bound by memory, as taking absolute values is."""
    return b.kernel(step, "elementwise", op="Abs", called=step.op.name.strip("_"))


def _unknown(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "copy", op="Abs", called=step.op.name.strip("_"))


# --- products of matrices -------------------------------------------------------------------------


@rule("addmm", "mm")
def _linear(b: Builder, step: Step) -> Kernel:
    left, right = [ref.id for ref in step.op.args if isinstance(ref, Ref)][-2:]
    m, k, n = b.axis(left, 0) * b.ratio, b.axis(left, 1), b.axis(right, 1)
    constant = all(b.tensor(version) != right for version in step.live)
    extents = {"b": Extent(), "m": m, "k": k, "n": n}
    weights = k * n if constant else NOTHING
    return b.kernel(
        step, "linear" if constant else "matmul", extents=extents, macs=m * k * n, weights=weights,
        biased=step.op.name == "addmm" and _in_rows(b, step),
    )  # fmt: skip


def _in_rows(b: Builder, step: Step) -> bool:
    """Whether the layer was given more than two axes: it is then exported as a product and an addition."""
    index = b.single_producer(step, ("reshape",))
    return index is not None and b.kernels[index].module == step.op.module


def _without_bias(b: Builder, index: int | None) -> None:
    """What follows adds the bias of the layer before it."""
    if index is not None and b.kernels[index].kind == "reshape":
        index = b.producer(b.kernels[index].inputs[0])
    if index is not None and b.kernels[index].kind == "linear":
        b.kernels[index] = replace(b.kernels[index], biased=False)


@rule("bmm", "baddbmm")
def _batched(b: Builder, step: Step) -> Kernel:
    left, right = [ref.id for ref in step.op.args if isinstance(ref, Ref)][-2:]
    extents = {
        "b": b.axis(left, 0) * b.ratio,
        "m": b.axis(left, 1),
        "k": b.axis(left, 2),
        "n": b.axis(right, 2),
    }
    macs = extents["b"] * extents["m"] * extents["k"] * extents["n"]
    if all(b.tensor(version) != right for version in step.live) and _spread(b, step, right):
        rows = {"b": Extent(), "m": extents["b"] * extents["m"], "k": extents["k"], "n": extents["n"]}
        return b.kernel(step, "linear", extents=rows, macs=macs, weights=extents["k"] * extents["n"])
    return b.kernel(step, "matmul", extents=extents, macs=macs)


def _spread(b: Builder, step: Step, tensor: int) -> bool:
    """Whether a constant is one matrix that serves every product of a batch, and not as many as there are products."""
    once = prod(b.shape(tensor)[1:])
    return once in [prod(b.shape(b.graph.parameters[name])) for name in b.parameters_read(step)]


# --- what reduces or normalises -------------------------------------------------------------------


@rule("max_pool2d_with_indices", "max_pool2d", "avg_pool2d")
def _pool(b: Builder, step: Step) -> Kernel:
    kernel = _integers(step.op.args[1], 2)
    stride = _integers(_argument(step, 2, ()) or kernel, 2)
    out = b.tensor(step.outputs[0])
    statics: dict[str, Static] = {
        "kernel": kernel,
        "stride": stride,
        "padding": _integers(_argument(step, 3, 0), 2),
        "spatial": b.shape(b.tensor(step.live[0]))[2:],
        "output": b.shape(out)[2:],
    }
    op = "AveragePool" if step.op.name.startswith("avg") else "MaxPool"
    extents = {"n": b.axis(out, 0) * b.ratio, "c": b.axis(out, 1)}
    return b.kernel(step, "pool", op=op, extents=extents, statics=statics)


@rule("mean", "sum", "amax", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _reduction(b: Builder, step: Step) -> Kernel:
    given, made = b.tensor(step.live[0]), b.tensor(step.outputs[0])
    rows = b.elements(made) * b.ratio
    columns = max(1, prod(b.shape(given)) // max(1, prod(b.shape(made))))
    return b.kernel(
        step, "reduce", op="ReduceMean", extents={"rows": rows, "columns": Extent(float(columns))}
    )


@rule(
    "_softmax", "_safe_softmax", "_log_softmax", "native_layer_norm", "native_group_norm", "_fused_rms_norm"
)
def _over_rows(b: Builder, step: Step) -> Kernel | None:
    made = b.tensor(step.outputs[0])
    last = len(b.shape(made)) - 1
    extents = {"rows": b.elements(made, range(last)) * b.ratio, "columns": b.axis(made, last)}
    if "softmax" in step.op.name:
        return b.kernel(step, "rows", op="Softmax", extents=extents)
    index = b.single_producer(step, ("elementwise",))
    if index is None or not _adds_two(b, b.kernels[index]):
        return b.kernel(step, "rows", op="LayerNormalization", extents=extents)
    for value in b.kernels[index].inputs:
        _without_bias(b, b.producer(value))
    merged = {"kind": "rows", "op": "SkipLayerNormalization", "extents": extents, "module": step.op.module}
    b.fold(step, index, **merged)
    return None


def _adds_two(b: Builder, kernel: Kernel) -> bool:
    shapes = {b.values[value].shape for value in kernel.inputs}
    return kernel.op == "Add" and len(kernel.inputs) == 2 and len(shapes) == 1


# --- what moves data ------------------------------------------------------------------------------


@rule("cat")
def _concat(b: Builder, step: Step) -> Kernel | None:
    if len(step.inputs) == 1:
        b.alias(step)
        return None
    return b.kernel(step, "concat", op="Concat", statics={"axis": _plain(_argument(step, 1, 0))})


@rule(*RESHAPES)
def _reshape(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "reshape", op="Reshape")


@rule("permute", "transpose")
def _permuted(b: Builder, step: Step) -> Kernel:
    """Where the last axis stays the last, whole rows are moved."""
    rank = len(b.shape(b.tensor(step.live[0])))
    if step.op.name == "permute":
        moved = _integers(step.op.args[1], rank)[-1] % rank != rank - 1
    else:
        moved = rank - 1 in {_plain(axis) % rank for axis in step.op.args[1:3]}
    return b.kernel(step, "copy", op="Transpose" if moved else "Slice")


@rule(
    "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "flip", "index", "index_select", "gather",
    "embedding", "constant_pad_nd", "roll", "repeat", "stack",
)  # fmt: skip
def _copy(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "copy", op="Slice")
