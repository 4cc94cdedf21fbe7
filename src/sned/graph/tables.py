"""The range of whole numbers that index tables, where an example holds but one value and so does not tell it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sned.graph.example import Example, Leaf
from sned.graph.ir import Op, Ref
from sned.graph.recording import Recording

PARTS = frozenset({"_to_copy", "alias", "clone", "detach", "expand", "permute", "reshape", "select", "slice", "split",
                   "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"})  # fmt: skip
"""Ops that return what they are given, or a part of it, as another shape or type."""


def widened(example: Example, recording: Recording) -> Example:
    """The example with whole numbers that range over the tables that they index, where all of these hold one value:
    networks on random inputs would see the same row of a table over and over."""
    rows = _indexed(recording)
    leaves = list(zip(example.leaves(), (rows.get(number) for number in recording.inputs), strict=True))
    if not all(_is_constant(leaf) and 0 <= leaf.low < size for leaf, size in leaves if size is not None):
        return example
    wider = iter(leaf if size is None else replace(leaf, low=0.0, high=size - 1.0) for leaf, size in leaves)
    args, kwargs = example.build(lambda _: next(wider))
    return replace(example, args=args, kwargs=kwargs)


def _is_constant(leaf: Leaf) -> bool:
    return {leaf.low} == set(leaf.high if isinstance(leaf.high, tuple) else (leaf.high,))


def _indexed(recording: Recording) -> dict[int, int]:
    """For each input that indexes tables the rows of the shortest."""
    whole = (n for n in recording.inputs if recording.tensors[n].dtype.startswith(("int", "uint")))
    sources = {number: number for number in whole}
    found: dict[int, int] = {}
    for op in recording.ops:
        if op.name in PARTS and op.inputs[0] in sources:
            sources.update((number, sources[op.inputs[0]]) for number in op.outputs if number is not None)
        for table, index in _look_ups(op):
            if isinstance(index, Ref) and index.id in sources:
                rows, number = recording.tensors[table.id].shape[0], sources[index.id]
                found[number] = min(rows, found.get(number, rows))
    return found


def _look_ups(op: Op) -> Iterator[tuple[Ref, Any]]:
    """The table and what indexes its rows."""
    if op.name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"):
        yield op.args[0], op.args[1]
    elif op.name == "index":
        yield op.args[0], op.args[1][0]
    elif op.name == "index_select" and op.args[1] == 0:
        yield op.args[0], op.args[2]
