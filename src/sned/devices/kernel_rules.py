"""Which kernel each recorded op becomes: one small rule an op family, registered by the op's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from sned.devices.kernels import NOTHING, Extent, Kernel, Size, Static, Value, Workload
from sned.graph.ir import Affine, Graph, Op, Ref

Rule = Callable[["Builder", "Step"], "Kernel | None"]
RULES: dict[str, Rule] = {}

IDENTITIES = frozenset({"detach", "alias", "clone", "contiguous", "lift_fresh", "_to_copy", "dropout", "native_dropout"})
RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "_reshape_alias", "flatten"})
FOLDED_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish"})
POINTWISE = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardtanh": "Clip", "clamp": "Clip", "clamp_min": "Relu",
    "relu6": "Clip", "leaky_relu": "LeakyRelu", "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish",
    "silu": "QuickGelu", "gelu": "Gelu", "elu": "Elu", "exp": "Exp", "sqrt": "Sqrt", "erf": "Erf", "softplus": "Softplus",
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "neg": "Neg", "abs": "Abs",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """An op with its tensors as versions: an in-place op reads one version of a tensor and writes the next."""

    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    live: tuple[int, ...]


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Builder:
    """Walks a graph once and collects kernels, values and size expressions."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph = graph
        self.ratio = batch / graph.batch if graph.batched else 1.0
        self.kernels: list[Kernel] = []
        self.values: list[Value] = []
        self.sizes: dict[Size, int] = {}
        self._tensor_of: list[int] = []  # by version
        self._names = {number: name for name, number in graph.parameters.items()}
        self._origin: dict[int, tuple[str, ...]] = {}  # version of a constant -> parameters that it is made of
        self._value_of: dict[int, int] = {}  # version -> value
        self._producer: dict[int, int] = {}  # value -> kernel
        self.folded: dict[str, Extent] = {}  # parameters and buffers that are folded into others

    def build(self) -> Workload:
        """Apply the rules to every op that depends on the network's inputs."""
        steps, inputs, outputs = self._versions()
        uses = Counter(version for step in steps for version in step.inputs)
        self._single = {version for version, count in uses.items() if count == 1} - set(outputs)
        for version in inputs:
            self._add_value(version)
        for step in steps:
            if not step.live:
                self._note_origin(step)
                continue
            self._step(step)
        graph = self.graph
        parameters = {name: self.elements(i) for name, i in graph.parameters.items() if name in graph.trainable}
        kept = [self.elements(i) for name, i in graph.parameters.items() if name not in self.folded]
        return Workload(
            kernels=tuple(self.kernels),
            values=tuple(self.values),
            inputs=tuple(self._value_of[v] for v in inputs),
            outputs=tuple(self._value_of[v] for v in outputs if v in self._value_of),
            sizes=tuple(self.sizes),
            group_sizes=tuple(group.size for group in graph.groups),
            group_least=tuple(group.cell_count for group in graph.groups),
            parameters=parameters,
            stored=(*kept, *self.folded.values()),
        )

    # --- what rules ask for ----------------------------------------------------------------------------------------

    def axis(self, tensor: int, axis: int) -> Extent:
        """The size of an axis of a recorded tensor, at the traced batch size."""
        terms = self.graph.terms(tensor, axis)
        if all(not term.groups for term in terms):
            return Extent(float(sum(term.count for term in terms)))
        return Extent(1.0, (self.sizes.setdefault(tuple(terms), len(self.sizes)),))

    def elements(self, tensor: int, axes: Iterable[int] | None = None) -> Extent:
        """The number of elements of a recorded tensor over `axes` (all of them), at the traced batch size."""
        total = Extent()
        for axis in range(len(self.graph.tensors[tensor].shape)) if axes is None else axes:
            total = total * self.axis(tensor, axis)
        return total

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The recorded shape of a tensor."""
        return self.graph.tensors[tensor].shape

    def input(self, step: Step, place: int = 0) -> Value:
        """The value that is the `place`-th live input of a step."""
        return self.values[self._value_of[step.live[place]]]

    def tensor(self, version: int) -> int:
        """The recorded tensor of a version."""
        return self._tensor_of[version]

    def kernel(self, step: Step, kind: str, **fields: Any) -> Kernel:
        """A kernel that reads the live inputs of `step`, writes its first output and owns the parameters it reads."""
        return Kernel(
            kind=kind,
            module=step.op.module,
            inputs=tuple(self._value_of[version] for version in step.live),
            output=[self._add_value(version) for version in step.outputs][0],
            parameters=self._parameters_read(step),
            **fields,
        )

    def single_producer(self, step: Step, kinds: Sequence[str]) -> int | None:
        """The kernel of one of `kinds` whose result only this step reads, if there is one."""
        if len(step.live) != 1 or step.live[0] not in self._single:
            return None
        index = self._producer.get(self._value_of[step.live[0]])
        return index if index is not None and self.kernels[index].kind in kinds else None

    def fold(self, step: Step, index: int, **changes: Any) -> None:
        """Let kernel `index` do what `step` does, too: its result is now that of the step."""
        old = self.kernels[index]
        output = self._add_value(step.outputs[0])
        parameters = (*old.parameters, *self._parameters_read(step))
        self.kernels[index] = replace(old, output=output, parameters=parameters, **changes)
        self._producer[output] = index

    # --- inside ----------------------------------------------------------------------------------------------------

    def _versions(self) -> tuple[list[Step], list[int], list[int]]:
        current: dict[int, int] = {}
        live: set[int] = set()

        def version(tensor: int) -> int:
            if tensor not in current:
                current[tensor] = len(self._tensor_of)
                self._tensor_of.append(tensor)
                if tensor in self._names:
                    self._origin[current[tensor]] = (self._names[tensor],)
            return current[tensor]

        inputs = [version(tensor) for tensor in self.graph.inputs]
        live.update(inputs)
        steps = []
        for op in self.graph.ops:
            read = tuple(version(tensor) for tensor in op.inputs)
            alive = tuple(v for v in read if v in live)
            written = [tensor for tensor in op.outputs if tensor is not None]
            if op.name.rstrip("_") in IDENTITIES and alive and written:
                current[written[0]] = alive[0]
                continue
            for tensor in written:
                current.pop(tensor, None)
            outputs = tuple(version(tensor) for tensor in written)
            if alive:
                live.update(outputs)
            if outputs:
                steps.append(Step(op, read, outputs, alive))
        return steps, inputs, [version(tensor) for tensor in self.graph.outputs]

    def _note_origin(self, step: Step) -> None:
        names = self._parameters_read(step)
        for version in step.outputs:
            self._origin[version] = names

    def _parameters_read(self, step: Step) -> tuple[str, ...]:
        return tuple(name for version in step.inputs for name in self._origin.get(version, ()))

    def _step(self, step: Step) -> None:
        name = step.op.name.removesuffix("_") if step.op.name not in RULES else step.op.name
        made = RULES.get(name, _pointwise if step.op.pointwise else _unknown)(self, step)
        if made is not None:
            self._producer[made.output] = len(self.kernels)
            self.kernels.append(made)

    def _add_value(self, version: int) -> int:
        tensor = self._tensor_of[version]
        rank = len(self.shape(tensor))
        batch = (self.axis(tensor, 0) if rank else Extent()) * self.ratio
        channels = self.axis(tensor, 1) if rank > 1 else Extent()
        # What lies behind the channels may shrink too (tokens, dimensions of a head): then it is no fixed spatial axis.
        fixed = True
        for axis in range(2, rank):
            if (extent := self.axis(tensor, axis)).sizes:
                channels, fixed = channels * extent, False
            elif not fixed:
                channels = channels * extent.factor
        inner = self.shape(tensor)[2:] if fixed else ()
        self._value_of[version] = len(self.values)
        self.values.append(Value(batch, channels, inner, rank if fixed else 2, self.shape(tensor)))
        return self._value_of[version]


def workload(graph: Graph, batch: int = 1) -> Workload:
    """Say what a runtime has to run for `graph` at a batch size.

    Args:
        graph: the traced network.
        batch: inputs at once, at least 1. A network that was traced at one batch size only is costed at that.
    """
    return Builder(graph, batch).build()


def _plain(value: Any) -> int:
    """An integer argument, at the traced batch size."""
    return value(2) if isinstance(value, Affine) else int(value)


def _integers(value: Any, count: int) -> tuple[int, ...]:
    values = value if isinstance(value, tuple | list) else (value,)
    plain = tuple(_plain(v) for v in values)
    return plain * count if len(plain) == 1 else plain


def _argument(step: Step, place: int, default: Any) -> Any:
    return step.op.args[place] if len(step.op.args) > place else default


# --- convolutions, and what folds into them ----------------------------------------------------------------------


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
    depthwise = groups > 1 and b.shape(weight.id)[1] == 1 and b.shape(weight.id)[0] == groups and not transposed
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
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_native_batch_norm_legit",
    "batch_norm", "_batch_norm_no_update", "_batch_norm_with_update",
)  # fmt: skip
def _batch_norm(b: Builder, step: Step) -> Kernel | None:
    index = b.single_producer(step, ("conv", "depthwise", "grouped", "deconv"))
    if index is None or b.kernels[index].activation:
        return b.kernel(step, "norm", op="BatchNormalization")
    names = [name for version in step.inputs for name in b._origin.get(version, ())]
    b.folded.update(dict.fromkeys(names, NOTHING))
    bias = f"{b.kernels[index].module}:folded bias"
    if bias in b.folded:
        b.folded[bias] = b.kernels[index].extents["co"]
    b.fold(step, index, biased=True)
    return None


@rule(*POINTWISE)
def _named_pointwise(b: Builder, step: Step) -> Kernel | None:
    op = POINTWISE[step.op.name.removesuffix("_")]
    index = b.single_producer(step, ("conv", "depthwise", "grouped"))
    if op in FOLDED_ACTIVATIONS and index is not None and not b.kernels[index].activation:
        b.fold(step, index, activation=op)
        return None
    return b.kernel(step, "elementwise", op=op)


def _pointwise(b: Builder, step: Step) -> Kernel:
    """An element-wise op that has no name here: bound by memory, as taking absolute values is."""
    return b.kernel(step, "elementwise", op="Abs")


def _unknown(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "copy", op="Abs")


# --- products of matrices ----------------------------------------------------------------------------------------


@rule("addmm", "mm")
def _linear(b: Builder, step: Step) -> Kernel:
    left, right = [ref.id for ref in step.op.args if isinstance(ref, Ref)][-2:]
    m, k, n = b.axis(left, 0) * b.ratio, b.axis(left, 1), b.axis(right, 1)
    constant = all(b.tensor(version) != right for version in step.live)
    extents = {"b": Extent(), "m": m, "k": k, "n": n}
    weights = k * n if constant else NOTHING
    return b.kernel(
        step, "linear" if constant else "matmul", extents=extents, macs=m * k * n, weights=weights
    )


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
    return b.kernel(step, "matmul", extents=extents, macs=macs)


# --- what reduces or normalises ----------------------------------------------------------------------------------


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
    return b.kernel(step, "reduce", op="ReduceMean", extents={"rows": rows, "columns": Extent(float(columns))})


@rule("_softmax", "_safe_softmax", "_log_softmax", "native_layer_norm", "native_group_norm", "_fused_rms_norm")
def _over_rows(b: Builder, step: Step) -> Kernel:
    made = b.tensor(step.outputs[0])
    last = len(b.shape(made)) - 1
    extents = {"rows": b.elements(made, range(last)) * b.ratio, "columns": b.axis(made, last)}
    return b.kernel(step, "rows", op="Softmax" if "softmax" in step.op.name else "LayerNormalization", extents=extents)


# --- what moves data ---------------------------------------------------------------------------------------------


@rule("cat")
def _concat(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "concat", op="Concat", statics={"axis": _plain(_argument(step, 1, 0))})


@rule(*RESHAPES)
def _reshape(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "reshape", op="Reshape")


@rule("permute", "transpose", "t", "select", "slice", "split", "split_with_sizes", "chunk", "index", "embedding",
      "index_select", "constant_pad_nd", "roll", "repeat", "stack", "unbind", "flip", "gather")  # fmt: skip
def _copy(b: Builder, step: Step) -> Kernel:
    return b.kernel(step, "copy", op="Transpose")
