"""What an output meets next: a BatchNorm that can take up a bias, a residual sum, an activation function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sned.calibration import Consumer
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
class Following:
    """What alone reads the output of a consumer: a norm, then a sum, then a clamp, each of them if it is
    there.

    Attributes:
        norm: the BatchNorm.
        other: the other side of the sum, a tensor that is there before the consumer runs.
        low, high: what the activation function clamps to: 0 and infinity for ReLU; infinite where there is
            none.
    """

    norm: Norm | None = None
    other: int | None = None
    low: float = -math.inf
    high: float = math.inf

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
    return _Follower(graph).all(consumers)


class _Follower:
    """Walks from the outputs of consumers through what alone reads them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = {number: name for name, number in graph.parameters.items()}
        self._readers: dict[int, list[Op]] = {}
        for op in graph.ops:
            for number in set(op.inputs):
                self._readers.setdefault(number, []).append(op)
        self._norms = {norm.op: norm for norm in norms(graph) if self._alone(norm.mean)}

    def all(self, consumers: tuple[Consumer, ...]) -> dict[int, Following]:
        """What follows each consumer, by op."""
        return {consumer.op: self._following(consumer) for consumer in consumers}

    def _alone(self, parameter: str) -> bool:
        return len(self._readers[self._graph.parameters[parameter]]) == 1

    def _following(self, consumer: Consumer) -> Following:
        found = Following()
        number: int | None = consumer.output
        at = consumer.op
        while number is not None and (op := self._only_reader(number, at)) is not None:
            summed = found.other is not None
            straight = number == consumer.output  # after a reshape, axis 1 may hold something else
            if op.name in CLAMPS:
                low, high = CLAMPS[op.name](op)
                return replace(found, low=low, high=high)
            if straight and op.index in self._norms:
                found = replace(found, norm=self._norms[op.index])
            elif op.name in ("add", "add_") and not summed:
                other = self._other_side(op, number)
                if other is None or not self._is_bias(other, consumer):
                    if other is None or not self._waits(other, number, consumer.op, op.index):
                        return found
                    found = replace(found, other=other)
            elif op.name not in RESHAPES:
                return found
            number, at = op.outputs[0], op.index
        return found

    def _is_bias(self, number: int, consumer: Consumer) -> bool:
        name = self._names.get(number)
        return name is not None and name == consumer.bias and not consumer.bias_inside

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
        """Whether a tensor of the same shape is there before op `start` and unchanged up to op `stop`."""
        tensors = self._graph.tensors
        made = [op.index for op in self._graph.ops[:stop] if other in op.outputs]
        return (
            other not in self._names
            and tensors[other].shape == tensors[number].shape
            and max(made, default=-1) < start
        )
