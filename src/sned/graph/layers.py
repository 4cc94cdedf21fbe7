"""Whole layers that can be left out: modules that return what has the shape of what they were given.

In a residual network, `x + f(x)`, that is the block (leave it out and its input passes) or the branch `f` (leave it
out and it adds nothing). A Keras model tells its own (`surgery/keras/passages.py`); there a branch goes by the name of
the addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sned.errors import PlanError, close_names
from sned.graph.recording import Call, Recording

if TYPE_CHECKING:
    from sned.graph.ir import Graph, Op

KEEPS_ZERO = frozenset({"mul", "mul_", "div", "div_", "view", "_unsafe_view", "reshape", "permute", "transpose", "t",
                        "unsqueeze", "squeeze", "flatten", "unflatten", "expand", "clone", "contiguous", "dropout",
                        "native_dropout", "_to_copy", "roll", "slice", "relu", "gelu", "silu", "neg"})  # fmt: skip
"""Ops that make zeros of zeros, so that a branch of zeros behind them still adds nothing."""


@dataclass(frozen=True)
class Layer:
    """A module that can be left out; in a Keras model also an addition, with the branch that it adds.

    Attributes:
        name: its path, such as `layer1.1`, `encoder.layers.3.mlp` or `conv2_block2_add`.
        adds: whether what it makes is added to a stream (then zeros take its place, else its input passes).
        parameters: how many numbers it holds that go with it.
        call: how it was called; None in a Keras model.
    """

    name: str
    adds: bool
    parameters: int
    call: Call | None = None

    @property
    def called(self) -> Call:
        """How it was called, in a PyTorch model."""
        assert self.call is not None
        return self.call


def chosen_layers(known: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """The named layers, without those that lie inside another one.

    Raises:
        PlanError: a name is not that of a layer that can be left out; close names are listed.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise PlanError(f"Layers are left out by a list of their names, such as ['layer3.4'], got {names!r}.")
    named = {layer.name: layer for layer in known}
    for name in names:
        if name not in named:
            raise PlanError(
                "A layer can be left out if it holds weights, runs once, and returns the shape that it takes; not so "
                f"{name!r}. {close_names(name, list(named))}"
            )
    return [named[name] for name in dict.fromkeys(names) if not any(name.startswith(f"{n}.") for n in names)]


def layers(graph: Graph) -> tuple[Layer, ...]:
    """The modules of a graph that can be left out, in the order in which they return.

    They ran once, hold a matrix of their own, and take and return tensors of one shape.
    """
    recording: Recording = graph.recorded.main
    times: dict[str, int] = {}
    for call in recording.calls:
        times[call.path] = times.get(call.path, 0) + 1
    found = []
    for call in recording.calls:
        own = _own(graph, call)
        if call.path and times[call.path] == 1 and any(len(shape) > 1 for shape in own):
            found.append(Layer(call.path, _adds(recording, call), sum(map(_count, own)), call))
    return tuple(found)


def _own(graph: Graph, call: Call) -> list[tuple[int, ...]]:
    """Shapes of the parameters inside a module that no other part of the network reads."""
    inside = (
        {number: name for name, number in graph.parameters.items() if name.startswith(f"{call.path}.")}
        if call.path
        else {}
    )
    elsewhere = {
        number
        for op in (*graph.ops[: call.first_op], *graph.ops[call.last_op :])
        for number in op.inputs
        if number in inside
    }
    return [graph.tensors[number].shape for number in inside if number not in elsewhere]


def _count(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _adds(recording: Recording, call: Call) -> bool:
    """Whether the result, through ops that keep zeros, is added to a tensor that was there before the call."""
    before = set(recording.inputs).union(
        *([n for n in op.outputs if n is not None] for op in recording.ops[: call.first_op])
    )
    reached = {call.made}
    shape = recording.tensors[call.made].shape
    for op in recording.ops[call.last_op :]:
        if reached.isdisjoint(op.inputs):
            continue
        if op.name in ("add", "add_"):
            return any(n in before and _full(recording, n, op, shape) for n in op.inputs)
        if op.name not in KEEPS_ZERO:
            return False
        reached.update(n for n in op.outputs if n is not None)
    return False


def _full(recording: Recording, number: int, op: Op, shape: tuple[int, ...]) -> bool:
    """Whether a summand is a stream of the size of the result, not a bias."""
    return _count(recording.tensors[number].shape) == _count(shape) and len(op.inputs) > 1
