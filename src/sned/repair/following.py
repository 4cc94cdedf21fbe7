"""What an output meets next: a BatchNorm that can take up a bias, a residual sum, an activation function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

from sned.calibration import Consumer
from sned.calibration.consumers import VIEWS
from sned.calibration.walk import needed_for
from sned.graph.ir import Graph, Op, Ref

NORMS = frozenset(
    {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm"}
)
CLAMPS: Mapping[str, Callable[[Op], tuple[float, float]]] = {
    "relu": lambda _: (0.0, math.inf),
    "relu_": lambda _: (0.0, math.inf),
    "relu6": lambda _: (0.0, 6.0),
    "hardtanh": lambda op: _limits(op),
    "hardtanh_": lambda op: _limits(op),
}
"""Activation functions that are the identity between two limits, and constant beyond."""

RESHAPES = frozenset({"view", "_unsafe_view", "reshape"})
COPIES = frozenset({"clone", "contiguous", "alias"})
ARITHMETIC = frozenset({"add", "sub", "mul", "div"})


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in evaluation mode, by the names of its parameters; `weight` and `bias` may be absent."""

    op: int
    input: int
    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float


@dataclass(frozen=True)
class Step:
    """Arithmetic with one number a channel that follows from parameters alone: a late bias, a BatchNorm written out.

    Attributes:
        op: index in `Graph.ops`.
        kind: "add", "sub", "mul" or "div".
        constant: the tensor that is added, taken off, multiplied with or divided by.
    """

    op: int
    kind: str
    constant: int


@dataclass(frozen=True)
class Following:
    """What alone reads the output of a consumer: norms and steps, then a sum, then a clamp, each of them if it is
    there.

    Attributes:
        line: BatchNorms and steps by channel, in their order.
        other: the other side of the sum, a tensor that can be told before the consumer runs.
        sum: index of the sum in `Graph.ops`; -1 where there is none.
        order: how the axes of the output were permuted ahead of the sum; None where they were not.
        low, high: what the activation function clamps to: 0 and infinity for ReLU; infinite where there is
            none.
    """

    line: tuple[Norm | Step, ...] = ()
    other: int | None = None
    sum: int = -1
    order: tuple[int, ...] | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def norm(self) -> Norm | None:
        """The first BatchNorm."""
        return next((each for each in self.line if isinstance(each, Norm)), None)

    @property
    def clamped(self) -> bool:
        """Whether an activation function clamps."""
        return self.low > -math.inf or self.high < math.inf


def _limits(op: Op) -> tuple[float, float]:
    given = [float(limit) for limit in op.args[1:3]]
    low, high = (given + [-1.0, 1.0][len(given) :])[:2]
    return low, high


def norms(graph: Graph) -> tuple[Norm, ...]:
    """Every BatchNorm of a graph that normalises with running statistics."""
    names = {number: name for name, number in graph.parameters.items()}
    found = (_norm(op, names) for op in graph.ops)
    return tuple(norm for norm in found if norm is not None)


def _norm(op: Op, names: dict[int, str]) -> Norm | None:
    if op.name not in NORMS:
        return None
    x, weight, bias, mean, variance = op.args[:5]
    if not isinstance(mean, Ref) or mean.id not in names or variance.id not in names:
        return None
    return Norm(
        op=op.index,
        input=x.id,
        weight=names.get(weight.id) if weight else None,
        bias=names.get(bias.id) if bias else None,
        mean=names[mean.id],
        variance=names[variance.id],
        eps=float(op.args[-1]) if isinstance(op.args[-1], float) else 1e-5,
    )


def followings(graph: Graph, consumers: tuple[Consumer, ...]) -> dict[int, Following]:
    """What follows each consumer, by op."""
    follower = _Follower(graph, {consumer.op for consumer in consumers})
    return {consumer.op: follower.following(consumer) for consumer in consumers}


class _Follower:
    """Walks from the outputs of consumers through what alone reads them."""

    def __init__(self, graph: Graph, consumers: Set[int]) -> None:
        self._graph = graph
        self._consumers = consumers
        self._names = {number: name for name, number in graph.parameters.items()}
        self._readers: dict[int, list[Op]] = {}
        for op in graph.ops:
            for number in set(op.inputs):
                self._readers.setdefault(number, []).append(op)
        self._norms = {norm.op: norm for norm in norms(graph) if self._alone(norm.mean)}
        self._constant = _constants(graph)

    def _alone(self, parameter: str) -> bool:
        return len(self._readers[self._graph.parameters[parameter]]) == 1

    def following(self, consumer: Consumer) -> Following:
        """What follows a consumer."""
        found = Following()
        number: int | None = consumer.output
        at = consumer.op
        axis: int | None = consumer.axis if consumer.geometry or consumer.parts == 1 else None
        reshaped = False
        while number is not None and (op := self._only_reader(number, at)) is not None:
            summed = found.other is not None
            if op.name in CLAMPS:
                low, high = CLAMPS[op.name](op)
                return replace(found, low=low, high=high)
            if not summed and op.index in self._norms and axis == 1:
                found = replace(found, line=(*found.line, self._norms[op.index]))
            elif not summed and (step := self._step(op, number, axis)) is not None:
                found = replace(found, line=(*found.line, step))
            elif not summed and (other := self._summed(op, number, consumer.op)) is not None:
                found = replace(found, other=other, sum=op.index)
            elif op.name == "permute" and not reshaped and not summed:
                order = found.order or tuple(range(len(op.args[1])))
                turn = [a % len(order) for a in op.args[1]]
                found = replace(found, order=tuple(order[a] for a in turn))
                axis = None if axis is None else turn.index(axis)
            elif op.name in RESHAPES and found.order is None:
                axis, reshaped = self._axis_after(op, number, axis), True
            elif op.name not in COPIES:
                return found
            number, at = op.outputs[0], op.index
        return found

    def _step(self, op: Op, number: int, axis: int | None) -> Step | None:
        """Arithmetic with a constant by channel; None for anything else."""
        kind = op.name.removesuffix("_")
        other = self._other_side(op, number) if kind in ARITHMETIC else None
        if axis is None or other is None or other not in self._constant:
            return None
        if kind in ("sub", "div") and op.args[0].id != number:
            return None
        tensors = self._graph.tensors
        rank, shape = len(tensors[number].shape), tensors[other].shape
        wide = (1,) * (rank - len(shape)) + shape
        by_channel = len(wide) == rank and all(n == 1 for a, n in enumerate(wide) if a != axis)
        return Step(op.index, kind, other) if by_channel else None

    def _summed(self, op: Op, number: int, start: int) -> int | None:
        """The other side of a sum that can be told already."""
        other = self._other_side(op, number) if op.name in ("add", "add_") else None
        return other if other is not None and self._waits(other, number, start, op.index) else None

    def _axis_after(self, op: Op, number: int, axis: int | None) -> int | None:
        """Where the channels lie after a reshape: at the end, if they did and are as many; else nowhere."""
        before = self._graph.tensors[number].shape
        after = () if op.outputs[0] is None else self._graph.tensors[op.outputs[0]].shape
        return len(after) - 1 if axis == len(before) - 1 and after and after[-1] == before[-1] else None

    def _only_reader(self, number: int, after: int) -> Op | None:
        """The op that alone reads what a tensor holds after op `after`, maybe by writing over it."""
        reading = [op for op in self._readers.get(number, []) if op.index > after]
        if not reading:
            return None
        alone = len(reading) == 1 and number not in self._graph.outputs
        return reading[0] if alone or number in reading[0].outputs else None

    @staticmethod
    def _other_side(op: Op, number: int) -> int | None:
        """The other tensor of a plain sum of two."""
        sides = [arg.id for arg in op.args if isinstance(arg, Ref)]
        if op.kwargs or len(op.args) != 2 or len(sides) != 2 or sides[0] == sides[1]:
            return None
        return sides[1] if sides[0] == number else sides[0]

    def _waits(self, other: int, number: int, start: int, stop: int) -> bool:
        """Whether a tensor of the same shape follows, as it is ahead of op `stop`, from what is there ahead of op
        `start`: no consumer is on the way, which would be solved for later, and nothing that is there is written over.
        """
        tensors = self._graph.tensors
        if other in self._names or tensors[other].shape != tensors[number].shape:
            return False
        later: set[int] = set()
        for op in needed_for(self._graph, other, start, stop):
            made = {n for n in op.outputs if n is not None}
            if op.index in self._consumers or (op.name.endswith("_") and not later >= made):
                return False
            later |= made
        return True


def _constants(graph: Graph) -> frozenset[int]:
    """Tensors that follow from parameters alone; nothing writes into a parameter on the way to them."""
    known, fresh = set(graph.parameters.values()), set[int]()
    for op in graph.ops:
        if not op.inputs or not all(number in known for number in op.inputs):
            continue
        if op.name.endswith("_") and op.inputs[0] not in fresh:
            continue
        made = {number for number in op.outputs if number is not None}
        known |= made
        if op.name not in VIEWS:
            fresh |= made
    return frozenset(known)
