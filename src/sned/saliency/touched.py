"""Where in the pass the loss of a group's units is first felt."""

from __future__ import annotations

from functools import lru_cache

from sned.graph.ir import Graph


@lru_cache(maxsize=1)
def first_touched(graph: Graph) -> tuple[int, ...]:
    """For every group the first op that losing units changes: it reads their slices, or answers less."""
    first = [len(graph.ops)] * len(graph.groups)
    owners: dict[int, set[int]] = {}
    for group in graph.groups:
        for slices in group.slices:
            owners.setdefault(graph.parameters[slices.parameter], set()).add(group.index)
    for op in reversed(graph.ops):
        touched = set().union(*(owners.get(number, ()) for number in op.inputs))
        for number in op.outputs:
            if number is not None:
                touched |= along(graph, number)
        for index in touched:
            first[index] = op.index
    return tuple(first)


def along(graph: Graph, tensor: int) -> set[int]:
    """The groups that any axis of a tensor depends on."""
    axes = range(len(graph.tensors[tensor].shape))
    return {group for axis in axes for term in graph.terms(tensor, axis) for group in term.groups}
