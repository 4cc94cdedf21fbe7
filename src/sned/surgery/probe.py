"""Find out, before anything is planned, which numbers cannot be repaired: a rehearsal on meta tensors.

Every group is cut by some of its units on a copy without values. At an op whose size is a literal in the code the
groups that it depends on are frozen, with the reason, and the rehearsal starts again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import nn

from sned.graph import Graph, Group, Op, Plan
from sned.graph.build import FIXED, build
from sned.graph.example import Example, Inputs, describe
from sned.graph.ir import IntArray
from sned.graph.modules import modules_of
from sned.graph.replay import cut_down, sizes_of
from sned.graph.trace import check_network, state_of, undisturbed
from sned.graph.trace import trace_example as recorded_example
from sned.surgery.attributes import Unrepaired, check_sizes, check_training, repair_attributes
from sned.surgery.keras import is_keras
from sned.surgery.masks import cut_masks
from sned.surgery.twin import twin

SHARE = 0.4
"""About how much of each group goes in the rehearsal."""


def trace(model: Any, example_inputs: Inputs) -> Graph:
    """Record what `model` does and find the groups of units that can go; the model is not touched.

    Args:
        model: any `nn.Module`, or a Keras 3 model on any backend.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; for a Keras model what
            `model.predict` takes. The first axis of the first tensor is taken for the batch. Values are not read,
            except the range of integers.

    Returns:
        The `Graph`: ops, shapes, groups, and what is frozen with the reason; no weight values.

    Raises:
        ModelError: the model does not run on the example.

    Example:
        >>> graph = sned.trace(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224))
        >>> [group.name for group in graph.groups][:2]
        ['conv1', 'layer1.0.conv1']
    """
    if is_keras(model):
        from sned.surgery.keras.road import trace_keras

        return trace_keras(model, example_inputs)
    check_network(model)
    return trace_example(model, describe(example_inputs))


def trace_example(model: nn.Module, example: Example) -> Graph:
    """`trace`, from a description of the inputs."""
    with undisturbed():
        graph = rehearsed(recorded_example(model, example))
    _traced[id(model)] = graph
    return graph


_traced: WeakValueDictionary[int, Graph] = WeakValueDictionary()
"""The graphs that are in use, by the identity of their model, which they keep alive."""


def known(model: nn.Module, plan: Plan) -> Graph | None:
    """The graph that `plan` was made from, where that was traced from this very model and is still in use.

    Whether the forward pass is still the same is for surgery to find out.
    """
    graph = _traced.get(id(model))
    if graph is None or graph.fingerprint != plan.fingerprint or graph.example != plan.example:
        return None
    state = state_of(model)
    same = all(
        name in state and tuple(state[name].shape) == graph.tensors[number].shape
        for name, number in graph.parameters.items()
    )
    return graph if same else None


Rehearse = Callable[[Graph, Plan], None]
"""Cuts a network without values by a plan, and raises `Unrepaired` where that cannot be done."""


def rehearsed(graph: Graph, rehearse: Rehearse | None = None) -> Graph:
    """The graph with those groups frozen that surgery could not cut."""
    rehearse = rehearse or _rehearse
    fixed: dict[int, int] = {}
    staying: dict[tuple[str, int], str] = {}
    while graph.groups:
        try:
            rehearse(graph, graph.plan(some_of_each(graph)))
            return graph
        except Unrepaired as error:
            alike = _alike(graph, error.op) if error.op is not None else set()
            if error.part is not None and error.part not in staying:
                staying |= _stuck(rehearse, graph, error.part, str(error))
            elif error.elsewhere or all(fixed.get(index, 0) == FIXED for index in alike):
                staying |= dict(_culprits(rehearse, graph, graph.groups, {}))
            else:
                fixed.update({index: fixed.get(index, 0) + 1 for index in alike})
            graph = build(graph.recorded, fixed, staying)
    return graph


def _stuck(
    rehearse: Rehearse, graph: Graph, part: tuple[str, int], reason: str
) -> dict[tuple[str, int], str]:
    """An axis that does not come out as planned; where several groups lie on it, the first axis of those to blame."""
    sharing = [g for g in graph.groups if any((s.parameter, s.axis) == part for s in g.slices)]
    blamed = dict(_culprits(rehearse, graph, sharing, {})) if len(sharing) > 1 else {}
    return blamed or {part: reason}


def _culprits(
    rehearse: Rehearse, graph: Graph, groups: Sequence[Group], going: dict[str, Sequence[int]]
) -> Iterator[tuple[tuple[str, int], str]]:
    """An axis of each of the groups that cannot be cut beside those that are `going`, and why: the last resort."""
    some = some_of_each(graph)
    more = {group.name: some[group.name] for group in groups}
    try:
        rehearse(graph, graph.plan({**going, **more}))
        going.update(more)
    except Unrepaired as error:
        if len(groups) == 1:
            part = groups[0].slices[0]
            yield (
                (part.parameter, part.axis),
                f"the model does not run without some of it (at {error.op.target})"
                if error.op
                else str(error),
            )
            return
        half = len(groups) // 2
        yield from _culprits(rehearse, graph, groups[:half], going)
        yield from _culprits(rehearse, graph, groups[half:], going)


def some_of_each(graph: Graph) -> dict[str, list[int]]:
    """Some units of every group, at least one a cell. Groups of one size lose unequally, in turn: a number that serves
    two of them must not suit both by chance."""
    met: Counter[int] = Counter()
    found = {}
    for group in graph.groups:
        counts = _counts(group.cell_size)
        found[group.name] = _last(group, counts[met[group.cell_size] % len(counts)])
        met[group.cell_size] += 1
    return found


def _counts(size: int) -> list[int]:
    """How many of a cell go, one group after the other: never all, nor a half, which literals might suit by chance."""
    around = int(size * SHARE)
    found = [n for n in (around, around - 1, around + 1, around + 2) if 0 < n < size and 2 * n != size]
    return found or [1]


def _last(group: Group, count: int) -> list[int]:
    return [int(u) for cell in range(group.cell_count) for u in np.flatnonzero(group.cells == cell)[-count:]]


def _rehearse(graph: Graph, plan: Plan) -> None:
    sizes = sizes_of(graph, plan)

    def cut(device: str) -> nn.Module:
        empty = {
            name: _without_values(tensor, plan.kept.get(name, {}), device)
            for name, tensor in state_of(graph.model).items()
        }
        small = twin(graph.model, empty)
        cut_masks(small, plan.kept)
        repair_attributes(small, graph, sizes)
        return small

    check_sizes(cut(graph.recorded.device), graph, sizes)
    trained = graph.recorded.trained
    if trained is not None:
        check_training(cut(trained.device), graph, trained)


def _without_values(tensor: torch.Tensor, axes: Mapping[int, IntArray], device: str) -> torch.Tensor:
    """A tensor of the size that is kept; whole numbers and single ones remain: a pass may ask for their values."""
    if not tensor.is_floating_point() or tensor.ndim == 0:
        return cut_down(tensor, axes)
    shape = [len(axes[axis]) if axis in axes else size for axis, size in enumerate(tensor.shape)]
    # `torch.zeros` works out in Python what it makes on the meta device.
    return torch.empty(shape, dtype=tensor.dtype, device=device).zero_()


def _alike(graph: Graph, op: Op) -> set[int]:
    """The op, and the one at the same place in every other module of the same class."""
    modules = dict(modules_of(graph.model))
    by_path: dict[str, list[Op]] = {}
    for other in graph.ops:
        by_path.setdefault(other.module, []).append(other)
    place = next(i for i, other in enumerate(by_path[op.module]) if other.index == op.index)
    kind = type(modules[op.module])
    found = {op.index}
    for path, ops in by_path.items():
        if type(modules[path]) is kind and place < len(ops) and ops[place].target == op.target:
            found.add(ops[place].index)
    return found
