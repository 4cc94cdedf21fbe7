"""Run the recorded ops piece by piece: to stop anywhere, and to go on from there on other weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from sned.graph.example import Inputs, arguments, tensors_in
from sned.graph.ir import Graph, Op, Ref
from sned.graph.plan import Plan
from sned.graph.replay import Replay, overload
from sned.saliency.registry import State

Live = dict[int, torch.Tensor]
"""Activations that later ops still read, by number; parameters are not among them."""


class Stepper:
    """The ops of a graph on the weights of a state, cut down by a plan if there is one.

    Args:
        graph: the network's structure.
        state: parameters and buffers by name, of the dense network.
        plan: what is cut.
    """

    def __init__(self, graph: Graph, state: State, plan: Plan | None = None) -> None:
        self._graph = graph
        self._replay = Replay(graph, state, plan)
        self._parameters = {number: self._replay.state[name] for name, number in graph.parameters.items()}
        self._device = next((t.device for t in self._replay.state.values()), torch.device("cpu"))
        self._done_with = last_reads(graph)
        # Arguments depend on the batch size only, and there are two: that of whole batches and that of the
        # last.
        self._sizes = lru_cache(maxsize=2)(self._replay.sizes)

    def begin(self, inputs: Inputs) -> Live:
        """What is live ahead of the first op."""
        live = dict(zip(self._graph.inputs, tensors_in(arguments(inputs)), strict=True))
        return live | {number: value.clone() for number, value in self._graph.constants.items()}

    def run(self, live: Live, batch: int, start: int, stop: int) -> None:
        """Run ops `start` to `stop` on `live`, which is brought from the one to the other in place."""
        sizes = self._sizes(batch)
        for op in self._graph.ops[start:stop]:
            self._call(op, *sizes.arguments(op), live)
            for number in self._done_with[op.index]:
                live.pop(number, None)

    def outputs(self, live: Live) -> list[torch.Tensor]:
        """What left the network, once all ops ran."""
        return [live[number] for number in self._graph.outputs]

    def _call(self, op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any], live: Live) -> None:
        named = {name: self._filled(value, live) for name, value in kwargs.items()}
        if "device" in named:  # recorded on meta
            named["device"] = self._device
        result = overload(op.target)(*self._filled(args, live), **named)
        listed = result if isinstance(result, tuple | list) else (result,)
        for number, value in zip(op.outputs, listed, strict=True):
            if number is not None:
                live[number] = value

    def _filled(self, value: Any, live: Live) -> Any:
        if isinstance(value, Ref):
            return live[value.id] if value.id in live else self._parameters[value.id]
        if isinstance(value, tuple | list):
            return [self._filled(item, live) for item in value]
        return value


@lru_cache(maxsize=1)
def last_reads(graph: Graph) -> tuple[frozenset[int], ...]:
    """For every op the tensors that it is the last to read, outputs of the network not among them."""
    last = {number: op.index for op in graph.ops for number in op.inputs}
    done: list[set[int]] = [set() for _ in graph.ops]
    for number in last.keys() - set(graph.outputs):
        done[last[number]].add(number)
    return tuple(map(frozenset, done))


@lru_cache(maxsize=1)
def first_touched(graph: Graph) -> tuple[int, ...]:
    """For every group the first op that a loss of its units changes: it reads what they own, or answers less."""
    first = [len(graph.ops)] * len(graph.groups)
    owners: dict[int, set[int]] = {}
    for group in graph.groups:
        for slices in group.slices:
            owners.setdefault(graph.parameters[slices.parameter], set()).add(group.index)
    for op in reversed(graph.ops):
        touched = set().union(*(owners.get(number, ()) for number in op.inputs))
        for number in op.outputs:
            if number is not None:
                touched |= _along(graph, number)
        for index in touched:
            first[index] = op.index
    return tuple(first)


def _along(graph: Graph, tensor: int) -> set[int]:
    """The groups that any axis of a tensor depends on."""
    axes = range(len(graph.tensors[tensor].shape))
    return {group for axis in axes for term in graph.terms(tensor, axis) for group in term.groups}
