"""Run the recorded ops again, on the same or on sliced parameters: an oracle that never calls the user's forward.

Sizes in views, splits and slices are worked out from the labels, so surgery on the module can be held against it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch

from sned.graph.coupling import Keep
from sned.graph.example import ArgsAndKwargs, Inputs, arguments, batch_in, tensors_in
from sned.graph.ir import Graph, IntArray, Op, Ref, leaves
from sned.graph.plan import Plan
from sned.graph.sizes import Sizes, filled
from sned.graph.trace import device_of

State = Mapping[str, torch.Tensor]
Instead = Callable[[Mapping[int, torch.Tensor]], Mapping[int, torch.Tensor]]


@torch.no_grad()
def slice_state(state: State, plan: Plan) -> dict[str, torch.Tensor]:
    """Every tensor of `state`, cut down to what the plan keeps."""
    sliced = {**state, **{name: cut_down(state[name], axes) for name, axes in plan.kept.items()}}
    for name, mask in plan.masks.items():
        sliced[name] = sliced[name] * torch.from_numpy(mask).to(sliced[name].device)
    return sliced


def cut_down(tensor: torch.Tensor, axes: Mapping[int, IntArray]) -> torch.Tensor:
    """What remains of a tensor when some of its axes keep the given indices alone."""
    last = tensor.ndim == 4 and not tensor.is_contiguous()
    last = last and tensor.is_contiguous(memory_format=torch.channels_last)
    for axis, kept in axes.items():
        tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def keep_of(graph: Graph, plan: Plan | None) -> Keep:
    """What a plan leaves of a graph, as it reads on every axis."""
    removed = plan.removed if plan else {}
    return graph.coupling.keep({graph.group(name).index: units for name, units in removed.items()})


def sizes_of(graph: Graph, plan: Plan | None) -> Sizes:
    """The size of every axis under a plan, at the traced batch size."""
    return Sizes(graph, keep_of(graph, plan))


class Replay:
    """The recorded pass of a graph as a function of parameters and inputs.

    Args:
        graph: what `sned.trace` made.
        state: parameters and buffers by name, of the dense network (`{**named_parameters, **named_buffers}`).
        plan: cut the parameters down and size everything accordingly; None runs the dense network.
        cut: the parameters are cut down by the plan already (`slice_state`).
    """

    def __init__(self, graph: Graph, state: State, plan: Plan | None = None, *, cut: bool = False) -> None:
        self.graph = graph
        self.plan = plan
        self.state: dict[str, torch.Tensor] = slice_state(state, plan) if plan and not cut else dict(state)
        self.keep = keep_of(graph, plan)
        self.device = device_of(self.state)
        self._arguments: dict[int, list[ArgsAndKwargs]] = {}

    def sizes(self, batch: int) -> Sizes:
        """Sizes of every tensor at a batch size, under the plan."""
        return Sizes(self.graph, self.keep, batch)

    def _args_at(self, batch: int) -> list[ArgsAndKwargs]:
        if type(batch) is not int and self.plan is None:  # `torch.export` leaves the batch size open
            return [(filled(op.args, batch), filled(op.kwargs, batch)) for op in self.graph.ops]
        if batch not in self._arguments:
            sizes = self.sizes(batch)
            self._arguments[batch] = [sizes.arguments(op) for op in self.graph.ops]
        return self._arguments[batch]

    @cached_property
    def _last_use(self) -> dict[int, int]:
        return {number: op.index for op in self.graph.ops for number in op.inputs}

    def run(
        self,
        inputs: Inputs,
        *,
        watch: Iterable[int] = (),
        before: Callable[[Op, dict[int, torch.Tensor]], None] | None = None,
        after: Callable[[Op, dict[int, torch.Tensor]], None] | None = None,
        instead: Mapping[int, Instead] | None = None,
        stop: int | None = None,
    ) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
        """Run the recorded ops.

        Args:
            inputs: as the model takes them, any batch size that the model takes.
            watch: numbers of tensors to return the values of.
            before, after: called ahead of each op, and behind it, with the op and the live tensors, those that it reads
                and makes among them; they may read and replace them.
            instead: by the number of an op, what is done in its place: it is given the live tensors, and returns those
                that it makes, by number.
            stop: number of the first op that is not run any more.

        Returns:
            The output tensors in order (empty when stopped early), and the watched tensors by number.
        """
        tensors = tensors_in(inputs if _split(inputs) else arguments(inputs))
        live: dict[int, torch.Tensor] = dict(zip(self.graph.inputs, tensors, strict=True))
        live |= {number: self.state[name] for name, number in self.graph.parameters.items()}
        live |= {number: self.state[name].clone() for name, number in self.graph.written.items()}
        live |= {number: self._constant(value) for number, value in self.graph.constants.items()}
        watched = set(watch)
        seen: dict[int, torch.Tensor] = {n: live[n] for n in watched if n in live}
        keep = watched | set(self.graph.outputs)
        args_at = self._args_at(batch_in(tensors))
        with torch.no_grad() if not torch.is_grad_enabled() else contextlib.nullcontext():
            for op in self.graph.ops[:stop]:
                if before is not None:
                    before(op, live)
                if instead is not None and op.index in instead:
                    live |= instead[op.index](live)
                else:
                    self._call(op, *args_at[op.index], live)
                if after is not None:
                    after(op, live)
                for number in op.outputs:
                    if number in watched:
                        seen[number] = live[number]
                for number in set(op.inputs):
                    if self._last_use[number] == op.index and number not in keep:
                        live.pop(number, None)
        outputs = [live[number] for number in self.graph.outputs] if stop is None else []
        return outputs, seen

    def _constant(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor that the forward holds itself; an empty one may have been made on the meta device."""
        if value.is_meta:
            return torch.empty(value.shape, dtype=value.dtype, device=self.device)
        return value.to(self.device, copy=True)

    def _call(
        self, op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any], live: dict[int, torch.Tensor]
    ) -> None:
        live |= computed(op, (args, kwargs), live.__getitem__, self.device)


INSTEAD = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten._embedding_bag_forward_only.default": "aten._embedding_bag.default",
}
"""Ops that were recorded under conditions a replay need not meet (those strides, no gradients), and what it calls."""


def written(graph: Graph) -> dict[str, int]:
    """Parameters and buffers that an op of the pass writes into, them or a view of them."""
    found = overwritten(graph)
    return {name: number for name, number in graph.parameters.items() if number in found}


def overwritten(graph: Graph) -> set[int]:
    """Tensors, no views of others, that an op of the pass writes into, them or a view of them."""
    base: dict[int, int] = {}
    found: set[int] = set()
    for op in graph.ops:
        for number, writes in _aliased(op):
            whole = base.get(number, number)
            if writes:
                found.add(whole)
            base |= {output: whole for output in op.outputs if output is not None}
    return found


def _aliased(op: Op) -> Iterator[tuple[int, bool]]:
    """The tensors that an op may return a view of (False), or writes into (True)."""
    declared = _declared(op.target)
    given = {**dict(zip(declared, op.args, strict=False)), **op.kwargs}
    for name, writes in declared.items():
        # Batch normalisation does not say in its schema what it writes while it trains.
        unsaid = name.startswith("running_") and given.get("training") is True
        if unsaid or writes is not None:
            for ref in leaves(given.get(name), Ref):
                yield ref.id, unsaid or bool(writes)


@cache
def _declared(target: str) -> dict[str, bool | None]:
    """The arguments of an op by name, in order: whether it writes into them, None where it does not even return a view
    of them."""
    arguments = overload(target)._schema.arguments
    return {held.name: None if held.alias_info is None else held.alias_info.is_write for held in arguments}


def _split(inputs: Inputs) -> bool:
    """Whether inputs come as (positional, keyword) arguments already."""
    return (
        isinstance(inputs, tuple)
        and len(inputs) == 2
        and type(inputs[0]) is tuple
        and type(inputs[1]) is dict
    )


@cache
def overload(target: str) -> Any:
    """The callable op of a recorded name: `aten.add.Tensor` is `torch.ops.aten.add.Tensor`."""
    namespace, name, version = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), version)


def computed(
    op: Op,
    given: tuple[tuple[Any, ...], Mapping[str, Any]],
    tensor: Callable[[int], torch.Tensor],
    device: torch.device,
) -> dict[int, torch.Tensor]:
    """What an op returns, by number; `tensor` tells those that it reads."""
    args, kwargs = given
    named = {name: filled_in(value, tensor) for name, value in kwargs.items()}
    if "device" in named:  # recorded on meta
        named["device"] = device
    result = overload(INSTEAD.get(op.target, op.target))(*filled_in(args, tensor), **named)
    listed: Sequence[Any] = result if isinstance(result, tuple | list) else (result,)
    return {number: value for number, value in zip(op.outputs, listed, strict=True) if number is not None}


def filled_in(value: Any, tensor: Callable[[int], torch.Tensor]) -> Any:
    """Arguments with a tensor for every `Ref`."""
    if isinstance(value, Ref):
        return tensor(value.id)
    if isinstance(value, tuple | list):
        return [filled_in(item, tensor) for item in value]
    return value
