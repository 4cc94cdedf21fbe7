"""Advance a replay a few ops at a time on a live cut, so that two networks can be walked through side by
side.

The live cut is what `Replay.run` holds between two ops: the tensors that a later op still reads. Parameters
are not in it (they are read when an op needs them, so a repaired weight takes effect from there on), nor are
views of parameters; copies of those that the pass writes into are.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from sned.calibration.consumers import VIEWS
from sned.graph.example import ArgsAndKwargs, Inputs, arguments, tensors_in
from sned.graph.ir import BoolArray, Graph, Op
from sned.graph.plan import Plan
from sned.graph.replay import Replay, State, computed, overwritten

Live = dict[int, Tensor]
"""Tensors by number."""


class Walk:
    """The recorded pass of a graph, run in steps.

    Args:
        graph: what `sned.trace` made.
        state: parameters and buffers of the dense network by name.
        plan: cut the parameters down; None walks through the dense network.
    """

    def __init__(self, graph: Graph, state: State, plan: Plan | None = None) -> None:
        self._replay = Replay(graph, state, plan)
        self._ops = graph.ops
        self._keep = self._replay.keep
        self.graph = graph
        self.state = self._replay.state
        self._names = {number: name for name, number in graph.parameters.items()}
        self._views = _views_of_parameters(graph)
        self._last_use = {number: op.index for op in graph.ops for number in op.inputs}
        self._arguments: dict[int, list[ArgsAndKwargs]] = {}

    def start(self, inputs: Inputs) -> Live:
        """The cut ahead of the first op."""
        given = dict(zip(self.graph.inputs, tensors_in(arguments(inputs)), strict=True))
        # Copies, for ops may write into them.
        return {
            number: value.to(self._replay.device, copy=True)
            for number, value in {**given, **self.graph.constants, **self._written()}.items()
        }

    def _written(self) -> Live:
        return {number: self.state[name] for name, number in self.graph.written.items()}

    def advance(self, live: Live, batch: int, start: int, stop: int) -> None:
        """Run ops `start` to `stop` (not included) on a cut, dropping what no later op reads."""
        with torch.no_grad():
            for op in self._ops[start:stop]:
                if op.outputs[:1] == () or op.outputs[0] not in self._views:
                    self._call(op, live, batch)
                    self._drop(op, live)

    def finished(self, live: Live, batch: int, start: int) -> list[Tensor]:
        """What the network answers from a cut ahead of op `start` on, which stays as it is."""
        held = copy.deepcopy(live)  # ops may write in place, and aliases within it stay aliases
        self.advance(held, batch, start, len(self._ops))
        return [self.value(number, held, batch) for number in self.graph.outputs]

    def constant(self, number: int, stop: int) -> Tensor:
        """A tensor that follows from parameters alone, as it is ahead of op `stop`."""
        held = {n: value.clone() for n, value in self._written().items()}
        return self.ahead(held, self.graph.batch, number, 0, stop)

    def ahead(self, live: Live, batch: int, number: int, start: int, stop: int) -> Tensor:
        """A tensor as it will be ahead of op `stop`, from a cut ahead of op `start`, which stays as it is."""
        held = dict(live)
        with torch.no_grad():
            for op in needed_for(self.graph, number, start, stop):
                self._call(op, held, batch)
        return self.value(number, held, batch)

    def value(self, number: int, live: Live, batch: int) -> Tensor:
        """A tensor on a cut, or one that follows from parameters alone."""
        return live[number] if number in live else self._parameter(number, batch)

    def kept(self, number: int, value: Tensor) -> Tensor:
        """What the plan leaves of a tensor of the dense network."""
        for axis in range(value.ndim):
            mask = self._keep.mask(number, axis)
            if mask is not None and not mask.all():
                stays = torch.from_numpy(_at_size(mask, value.shape[axis], self.graph.batch))
                value = value[(slice(None),) * axis + (stays.to(value.device),)]
        return value

    def _args_at(self, batch: int) -> list[ArgsAndKwargs]:
        if batch not in self._arguments:
            sizes = self._replay.sizes(batch)
            self._arguments[batch] = [sizes.arguments(op) for op in self._ops]
        return self._arguments[batch]

    def _call(self, op: Op, live: Live, batch: int) -> None:
        given = self._args_at(batch)[op.index]
        live |= computed(op, given, lambda number: self.value(number, live, batch), self._replay.device)

    def _parameter(self, number: int, batch: int) -> Tensor:
        """A parameter, or a view of one made anew."""
        if number in self._names:
            return self.state[self._names[number]]
        held: Live = {}
        self._call(self._views[number], held, batch)
        return held[number]

    def _drop(self, op: Op, live: Live) -> None:
        for number in {*op.inputs, *(n for n in op.outputs if n is not None)}:
            if self._last_use.get(number, -1) <= op.index and number not in self.graph.outputs:
                live.pop(number, None)


def _at_size(mask: BoolArray, size: int, batch: int) -> BoolArray:
    """A mask of an axis that was recorded at one batch size and has `size` positions at another: where the batch is
    merged into the axis it repeats all positions, or each of them."""
    if len(mask) == size:
        return mask
    first = mask[: len(mask) // batch]
    whole = np.array_equal(np.tile(first, batch), mask)
    return (
        np.tile(first, size // len(first)) if whole else np.repeat(mask[::batch], size * batch // len(mask))
    )


def needed_for(graph: Graph, number: int, start: int, stop: int) -> list[Op]:
    """The ops from `start` up to `stop` (not included) without which a tensor is not what it is then."""
    needed, ops = {number}, []
    for op in reversed(graph.ops[start:stop]):
        if needed.intersection(op.outputs):
            ops.append(op)
            needed.update(op.inputs)
    return ops[::-1]


def _views_of_parameters(graph: Graph) -> dict[int, Op]:
    """What makes each tensor that is a view of a parameter, or a copy that nothing is written into."""
    own = overwritten(graph)
    parameters = set(graph.parameters.values()) - set(graph.written.values())
    views: dict[int, Op] = {}
    for op in graph.ops:
        number = op.outputs[0] if op.outputs else None
        known = bool(op.inputs) and all(n in parameters or n in views for n in op.inputs)
        if op.name in VIEWS and known and number is not None and number not in own:
            views[number] = op
    return views
