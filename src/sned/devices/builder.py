"""Walk a recorded graph and collect kernels: what the rules, one an op family, make of its ops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sned.devices.kernels import NOTHING, Extent, Kernel, Size, Value, Workload
from sned.graph.ir import Graph, Op

Rule = Callable[["Builder", "Step"], "Kernel | None"]

IDENTITIES = frozenset(
    {"detach", "alias", "clone", "contiguous", "lift_fresh", "_to_copy", "dropout", "native_dropout"}
)
"""Ops that a runtime leaves out."""


@dataclass(frozen=True)
class Step:
    """An op with its tensors as versions: an in-place op reads one version and writes the next."""

    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    live: tuple[int, ...]


class Builder:
    """Walks a graph once and collects kernels, values and size expressions."""

    def __init__(self, graph: Graph, batch: int, rule_of: Callable[[Op], Rule]) -> None:
        self.graph = graph
        self._rule_of = rule_of
        self.ratio = batch / graph.batch if graph.batched else 1.0
        self.kernels: list[Kernel] = []
        self.values: list[Value] = []
        self.sizes: dict[Size, int] = {}
        self._tensor_of: list[int] = []  # by version
        self._names = {number: name for name, number in graph.parameters.items()}
        self._origin: dict[
            int, tuple[str, ...]
        ] = {}  # version of a constant -> parameters that it is made of
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
        parameters = {
            name: self.elements(i) for name, i in graph.parameters.items() if name in graph.trainable
        }
        kept = [
            self.elements(i)
            for name, i in graph.parameters.items()
            if i in graph.read and name not in self.folded
        ]
        return Workload(
            kernels=tuple(in_one_op(self.kernels, graph.recurrent)),
            values=tuple(self.values),
            inputs=tuple(self._value_of[v] for v in inputs),
            outputs=tuple(self._value_of[v] for v in outputs if v in self._value_of),
            sizes=tuple(self.sizes),
            group_sizes=tuple(group.size for group in graph.groups),
            group_least=tuple(group.cell_count for group in graph.groups),
            parameters=parameters,
            stored=(*kept, *self.folded.values()),
        )

    # --- what rules ask for -----------------------------------------------------------------------

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
        """Make a kernel that reads the live inputs of `step` and writes its outputs."""
        outputs = [self._add_value(version) for version in step.outputs]
        return Kernel(
            kind=kind,
            module=step.op.module,
            inputs=tuple(self._value_of[version] for version in step.live),
            output=outputs[0],
            further=tuple(outputs[1:]),
            parameters=self.parameters_read(step),
            **fields,
        )

    def single_producer(self, step: Step, kinds: Sequence[str]) -> int | None:
        """The kernel of one of `kinds` whose result only this step reads, if there is one."""
        if len(step.live) != 1 or step.live[0] not in self._single:
            return None
        index = self._producer.get(self._value_of[step.live[0]])
        return index if index is not None and self.kernels[index].kind in kinds else None

    def producer(self, value: int) -> int | None:
        """The kernel that writes a value; None for an input of the network."""
        return self._producer.get(value)

    def alias(self, step: Step) -> None:
        """Let the result of `step` be its input."""
        self._value_of[step.outputs[0]] = self._value_of[step.live[0]]

    def fold(self, step: Step, index: int, **changes: Any) -> None:
        """Let kernel `index` do what `step` does, too: its result is now that of the step."""
        old = self.kernels[index]
        output = self._add_value(step.outputs[0])
        parameters = (*old.parameters, *self.parameters_read(step))
        self.kernels[index] = replace(old, output=output, parameters=parameters, **changes)
        self._producer[output] = index

    def parameters_read(self, step: Step) -> tuple[str, ...]:
        """Names of the parameters and buffers that a step reads, directly or after constant ops."""
        return tuple(name for version in step.inputs for name in self._origin.get(version, ()))

    # --- inside -----------------------------------------------------------------------------------

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
        names = self.parameters_read(step)
        for version in step.outputs:
            self._origin[version] = names

    def _step(self, step: Step) -> None:
        made = self._rule_of(step.op)(self, step)
        if made is not None:
            self._producer[made.output] = len(self.kernels)
            self.kernels.append(made)

    def _add_value(self, version: int) -> int:
        tensor = self._tensor_of[version]
        rank = len(self.shape(tensor))
        batch = (self.axis(tensor, 0) if rank else Extent()) * self.ratio
        channels = self.axis(tensor, 1) if rank > 1 else Extent()
        # What lies behind the channels may shrink too (tokens, dimensions of a head): then it is no fixed
        # spatial axis, and all counts as channels.
        fixed = not any(self.axis(tensor, axis).sizes for axis in range(2, rank))
        if not fixed:
            channels = self.elements(tensor, range(1, rank))
        inner = self.shape(tensor)[2:] if fixed else ()
        self._value_of[version] = len(self.values)
        self.values.append(Value(batch, channels, inner, rank if fixed else 2, self.shape(tensor)))
        return self._value_of[version]


def in_one_op(kernels: Sequence[Kernel], layers: frozenset[str]) -> Iterator[Kernel]:
    """Let layers run as one op: each of their products once, of the rows of all steps; all else goes along."""
    steps = Counter((k.module, k.parameters) for k in kernels if k.module in layers and k.kind == "linear")
    for kernel in kernels:
        if kernel.module not in layers:
            yield kernel
            continue
        rows = steps.pop((kernel.module, kernel.parameters), 0) if kernel.kind == "linear" else 0
        if rows == 0:
            yield replace(kernel, along=True, macs=NOTHING)
        else:
            yield replace(
                kernel, macs=kernel.macs * rows, extents={**kernel.extents, "m": kernel.extents["m"] * rows}
            )
