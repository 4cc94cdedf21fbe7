"""Record one forward pass as ATen ops, below autograd, without computing anything.

Parameters are swapped for meta tensors, so the model is not touched and its size does not matter. The pass is recorded
at two batch sizes: integers that differ between them depend on the batch, and the replay can run at any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sned.errors import ModelError
from sned.graph.coupling import Coupling, Position
from sned.graph.example import Example, Inputs, Leaf, describe, tensors_in
from sned.graph.flow import Flow
from sned.graph.provenance import Attribute, Scale, Sized, SizedFloat, TensorAxis, Use, Watch, functions_opened, instrumented
from sned.graph.labels import covering
from sned.graph.rescale import Rescale, Upstream, rescales
from sned.graph.ir import Affine, Graph, Op, Ref, Tensor
from sned.graph.rules import RULES

BATCHES = (2, 3)
"""The batch sizes traced. Not 1: a view could not be told from a merge with the batch axis."""


@dataclass
class Recording:
    """One recorded pass: ops over numbered tensors, and which numbers are parameters, inputs and outputs."""

    ops: list[Op] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """Writes every ATen call into a `Recording`, with the path of the module that made it."""

    def __init__(self, model: nn.Module, parameters: Mapping[int, str], recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self._names = parameters
        self._numbers: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # keeps id() unique
        self._paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
        self._stack: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = (self._plain(args), {name: self._plain(value) for name, value in (kwargs or {}).items()})
        result = func(*args, **(kwargs or {}))
        if func.namespace != "prim":
            listed = result if isinstance(result, tuple | list) else [result]
            outputs = tuple(self.number(t) if isinstance(t, torch.Tensor) else None for t in listed)
            ops = self.recording.ops
            pointwise = torch.Tag.pointwise in func.tags
            ops.append(Op(len(ops), str(func), *held, outputs, self._stack[-1], pointwise))
        return result

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor, given when it is first seen."""
        number = self._numbers.get(id(tensor))
        if number is None or self.recording.tensors[number].shape != tensor.shape:  # `transpose_` changes the shape
            number = self._numbers[id(tensor)] = len(self.recording.tensors)
            self._alive.append(tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.recording.tensors.append(Tensor(tuple(tensor.shape), dtype))
            if (name := self._names.get(id(tensor))) is not None:
                self.recording.parameters[name] = number
        return number

    def known(self, tensor: torch.Tensor) -> int | None:
        """The number of a tensor that was met already."""
        return self._numbers.get(id(tensor))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return Ref(self._read(value))
        if isinstance(value, tuple | list):
            return tuple(self._plain(item) for item in value)
        if isinstance(value, Sized | SizedFloat):
            return int(value) if isinstance(value, Sized) else float(value)
        return value

    def _read(self, tensor: torch.Tensor) -> int:
        known = id(tensor) in self._numbers or id(tensor) in self._names
        number = self.number(tensor)
        if not known:
            self.recording.constants[number] = tensor
        return number

    @contextmanager
    def module_paths(self) -> Iterator[None]:
        """Follow which module is running."""

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(self._paths.get(id(module), self._stack[-1]))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self._stack.pop()

        hooks = torch.nn.modules.module
        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, all names of tied ones included."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Turn off fused kernels that hide structure: the fast path of multi-head attention."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def mode_of(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module in train or eval mode, and each back into its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def record(
    model: nn.Module,
    example: Example,
    batch: int | None,
    *,
    into: Recording | None = None,
    device: str = "meta",
) -> Recording:
    """Run `model` once on inputs like `example`, on meta tensors, and return what it did.

    `into` is filled as the pass goes, so that it says how far the pass got when the model raises.

    Raises:
        Whatever the model raises.
    """
    given = state_of(model)
    twins: dict[int, torch.Tensor] = {}
    swapped = {name: twins.setdefault(id(t), t.detach().to(device)) for name, t in given.items()}
    names: dict[int, str] = {}
    for name, tensor in swapped.items():
        names.setdefault(id(tensor), name)

    def empty(leaf: Leaf) -> torch.Tensor:
        shape = leaf.resized(batch, example.batch)
        return torch.empty(shape, dtype=getattr(torch, leaf.dtype), device=device)

    args, kwargs = example.build(empty)
    recorder = Recorder(model, names, into or Recording())
    inputs = tuple(recorder.number(t) for t in tensors_in((args, kwargs)))
    with ExitStack() as stack:
        stack.enter_context(plain_kernels())
        stack.enter_context(mode_of(model, training=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder.module_paths())
        stack.enter_context(recorder)
        stack.enter_context(instrumented(model))
        stack.enter_context(functions_opened())
        watch = stack.enter_context(Watch(lambda: len(recorder.recording.ops), recorder.known))
        output = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
    recording = recorder.recording
    recording.inputs = inputs
    recording.uses, recording.scales = watch.uses, watch.scales
    recording.outputs = tuple(recorder.number(t) for t in tensors_in(output))
    for number in inputs:
        recording.constants.pop(number, None)
    return recording


def trace(model: nn.Module, example_inputs: Inputs) -> Graph:
    """Record what `model` does and find the groups of units that must go together; the model is not touched.

    Args:
        model: any `nn.Module`.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments. The first axis of the
            first tensor is taken for the batch. Values are not read, except the range of integers.

    Returns:
        The `Graph`: ops, shapes, groups and what is frozen; no weight values.

    Raises:
        ModelError: the model does not run on the example.

    Example:
        >>> graph = sned.trace(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224))
        >>> [group.name for group in graph.groups][:2]
        ['conv1', 'layer1.0.conv1']
    """
    return trace_example(model, describe(example_inputs))


def trace_example(model: nn.Module, example: Example) -> Graph:
    """`trace`, from a description of the inputs."""
    recording, batched = _both(model, example)
    return build(model, example, recording, batched)


def _both(model: nn.Module, example: Example) -> tuple[Recording, bool]:
    """The pass at two batch sizes, merged; or, where the model takes no other batch size, at the example's own."""
    try:
        first, second = (record(model, example, batch) for batch in BATCHES)
    except Exception:  # the model may take one batch size only; then its own error says more
        return _single(model, example), False
    merged = _merge(first, second)
    return (merged, True) if merged else (_single(model, example), False)


def _single(model: nn.Module, example: Example) -> Recording:
    try:
        return record(model, example, None)
    except Exception as error:
        shapes = ", ".join(str(leaf.shape) for leaf in example.leaves())
        raise ModelError(
            f"The model must run on the example inputs, but {type(model).__name__}.forward failed on shapes {shapes}: "
            f"{type(error).__name__}: {error}. Check the shape, the order and the dtype of the example."
        ) from error


def _merge(first: Recording, second: Recording) -> Recording | None:
    """Replace integers that differ between two batch sizes by `Affine`; None where the passes differ otherwise."""
    if [op.target for op in first.ops] != [op.target for op in second.ops]:
        return None
    try:
        ops = [
            replace(a, args=_affine(a.args, b.args), kwargs=_affine(a.kwargs, b.kwargs))
            for a, b in zip(first.ops, second.ops, strict=True)
        ]
    except ValueError:
        return None
    return replace(first, ops=ops)


def _affine(a: Any, b: Any) -> Any:
    if isinstance(a, tuple | list):
        return tuple(_affine(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping):
        return {name: _affine(a[name], b[name]) for name in a}
    if type(a) is int and a != b:
        slope, rest = divmod(b - a, BATCHES[1] - BATCHES[0])
        if rest:
            raise ValueError("not affine in the batch size")
        return Affine(a - slope * BATCHES[0], slope)
    if isinstance(a, float) and a != b:
        raise ValueError("a float that depends on the batch size")
    return a


def _fix(flow: Flow, op: Op, inputs: bool) -> None:
    """What changes the shape of an op's outputs (and inputs) does not leave by itself."""
    for number in (*op.outputs, *(op.inputs if inputs else ())):
        for box in flow.boxes.get(number, ()) if number is not None else ():
            for axis in box.axes:
                flow.block(flow.axis(box, axis), "its size is a number in the code that no attribute holds")


def _link(flow: Flow, use: Use) -> None:
    """A size in a shape that was taken from an axis of another tensor: both must keep their proportion."""
    if use.from_end is None or flow.op is None or use.equals is not None:
        return
    made = next((n for n in reversed(flow.op.outputs) if n is not None), None)
    sources = [s for s in use.formula.sources if isinstance(s, TensorAxis)]
    if made is None or len(sources) != 1 or use.from_end > len(flow.tensors[made].shape):
        return
    axis = len(flow.tensors[made].shape) - use.from_end
    if flow.tensors[made].shape[axis] == use.value > 1:
        flow.link((sources[0].tensor, sources[0].axis), (made, axis))


def _link_attributes(flow: Flow, ops: Sequence[Op], uses: Sequence[Use]) -> None:
    """One attribute that gives the size of several axes: they keep their proportion."""
    first: dict[Attribute, tuple[int, int]] = {}
    for use in uses:
        if use.from_end is None or len(use.formula.sources) != 1:
            continue
        (source,) = use.formula.sources
        made = next((n for n in reversed(ops[use.last_op - 1].outputs) if n is not None), None)
        if not isinstance(source, Attribute) or made is None or use.from_end > len(flow.tensors[made].shape):
            continue
        axis = len(flow.tensors[made].shape) - use.from_end
        if flow.tensors[made].shape[axis] == use.value == use.formula.evaluate({source: use.value}) > 1:
            flow.op = ops[use.last_op - 1]
            before = first.setdefault(source, (made, axis))
            if before != (made, axis):
                flow.link(before, (made, axis))


def _make_up(flow: Flow, recording: Recording, positions: Sequence[Position]) -> Iterator[Rescale]:
    """Weights that make up for factors that follow from sizes; where there are none, the size stays."""
    upstream = Upstream(
        recording.ops,
        {number: name for name, number in recording.parameters.items()},
        {(p.parameter, p.axis): int(p.labels[0]) for p in positions},
        [tensor.shape for tensor in recording.tensors],
        flow.boxes,
    )
    for found in rescales(recording.ops, recording.scales, upstream):
        if isinstance(found, Rescale):
            yield found
            continue
        for source in found.formula.sources:
            box = covering(flow.boxes.get(source.tensor, ()), source.axis) if isinstance(source, TensorAxis) else None
            if box is not None and isinstance(source, TensorAxis):
                flow.block(flow.axis(box, source.axis), "the code derives a factor from this size")


def build(
    model: nn.Module, example: Example, recording: Recording, batched: bool, fixed: Mapping[int, bool] | None = None
) -> Graph:
    """Let labels flow through a recording and solve for the groups.

    `fixed` names ops, by number, that may not change the size of what they make, or (True) of what goes in either.
    """
    flow = Flow(recording.tensors)
    positions = []
    trainable = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
    for name, number in recording.parameters.items():
        if recording.tensors[number].dtype.startswith(("float", "bfloat", "complex")):
            positions += [Position(name, axis, ids) for axis, ids in flow.parameter(number).items()]
    for op in recording.ops:
        flow.op = op
        RULES.get(op.name, RULES["pointwise"] if op.pointwise else RULES["unknown"])(flow, op)
        if fixed and op.index in fixed:
            _fix(flow, op, fixed[op.index])
    for use in recording.uses:
        flow.op = recording.ops[use.last_op - 1] if use.last_op <= len(recording.ops) else None
        _link(flow, use)
    _link_attributes(flow, recording.ops, recording.uses)
    flow.op = None
    made_up = tuple(_make_up(flow, recording, positions))
    for number in recording.outputs:
        flow.freeze_boxes(flow.boxes.get(number, ()), "output of the model")
    order = {name: i for i, name in enumerate(recording.parameters)}
    state = state_of(model)
    first_names: dict[int, str] = {}
    aliases = {}
    for name, tensor in state.items():
        if (first := first_names.setdefault(id(tensor), name)) != name:
            aliases[name] = first
    return Graph(
        ops=tuple(recording.ops),
        tensors=tuple(recording.tensors),
        parameters=dict(recording.parameters),
        trainable=trainable,
        aliases=aliases,
        unread=tuple(n for n in state if n not in recording.parameters and n not in aliases),
        inputs=recording.inputs,
        outputs=recording.outputs,
        constants=recording.constants,
        batch=BATCHES[0] if batched else example.batch,
        batched=batched,
        example=example,
        coupling=Coupling(flow.relations, positions, flow.boxes, order),
        uses=tuple(recording.uses),
        recording=recording,
        rescales=made_up,
        model=model,
    )
