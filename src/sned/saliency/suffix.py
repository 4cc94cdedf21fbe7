"""Run a network again from some op onwards, on other weights, from what a dense run has live there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from sned.graph.ir import Graph, Ref
from sned.graph.plan import Plan
from sned.graph.replay import Replay, overload
from sned.saliency.registry import State


class Suffix:
    """The ops of a graph from the first one that a plan changes, on the plan's weights.

    Args:
        graph: the network's structure.
        plan: what is cut.
        state: parameters and buffers of the dense network, repaired if so wished; cut down here.
    """

    def __init__(self, graph: Graph, plan: Plan, state: State) -> None:
        self._graph = graph
        self._replay = Replay(graph, state, plan)
        self._device = next((t.device for t in self._replay.state.values()), torch.device("cpu"))
        self.start = first_reader(graph, plan.kept)
        self._ops = graph.ops[self.start :]
        self._read = frozenset(graph.outputs).union(*(op.inputs for op in self._ops))
        # Arguments depend on the batch size only; batches come in two sizes, whole ones and the last.
        self._arguments = lru_cache(maxsize=2)(self._arguments_at)

    def _arguments_at(self, batch: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        sizes = self._replay.sizes(batch)
        return [sizes.arguments(op) for op in self._ops]

    def run(self, live: Mapping[int, torch.Tensor], batch: int) -> list[torch.Tensor]:
        """The outputs at a batch size, from the tensors live ahead of op `start` in a run on dense weights.

        They are copied first, aliases among them kept: ops may write in place.
        """
        graph = self._graph
        parameters = {number: self._replay.state[name] for name, number in graph.parameters.items()}
        held = copy.deepcopy({n: live[n] for n in self._read & live.keys() if n not in parameters})
        held |= parameters
        for op, (args, kwargs) in zip(self._ops, self._arguments(batch), strict=True):
            named = {name: _filled(value, held) for name, value in kwargs.items()}
            if "device" in named:  # recorded on meta
                named["device"] = self._device
            result = overload(op.target)(*_filled(args, held), **named)
            listed = result if isinstance(result, tuple | list) else (result,)
            held |= {n: value for n, value in zip(op.outputs, listed, strict=True) if n is not None}
        return [held[number] for number in graph.outputs]


def first_reader(graph: Graph, parameters: Mapping[str, object]) -> int:
    """Number of the first op that reads one of the named parameters; the count of ops where none does."""
    numbers = {graph.parameters[name] for name in parameters if name in graph.parameters}
    return next((op.index for op in graph.ops if numbers & set(op.inputs)), len(graph.ops))


def _filled(value: Any, held: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(value, Ref):
        return held[value.id]
    if isinstance(value, tuple | list):
        return [_filled(item, held) for item in value]
    return value
