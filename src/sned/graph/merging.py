"""Two passes at two batch sizes made one, whose numbers follow the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from sned.graph.ir import Affine, leaves
from sned.graph.recording import BATCHES, Recording, rows_in_step, without


def merge(first: Recording, second: Recording, batches: tuple[int, int] = BATCHES) -> Recording | None:
    """Replace integers that differ between two batch sizes by `Affine`; None where the passes differ otherwise.

    So do passes that make a tensor of their own of numbers that depend on the batch (`torch.tensor([t] * len(x))`).
    An op that returns as many tensors as there are inputs (`list(x)`) is left out; None where one of them is read.
    """
    if [op.target for op in first.ops] != [op.target for op in second.ops]:
        return None
    lists = {
        a.index: a for a, b in zip(first.ops, second.ops, strict=True) if len(a.outputs) != len(b.outputs)
    }
    read = {*first.outputs}.union(*(op.inputs for op in first.ops))
    if any(number in read for op in lists.values() for number in op.outputs):
        return None
    made = zip(first.constants.values(), second.constants.values(), strict=True)
    try:
        if not all(_equal(a, b) for a, b in made):
            return None
        ops = [
            a
            if (a.args, a.kwargs) == (b.args, b.kwargs)
            else replace(
                a, args=_affine(a.args, b.args, batches), kwargs=_affine(a.kwargs, b.kwargs, batches)
            )
            for a, b in zip(first.ops, second.ops, strict=True)
        ]
        outputs = zip(first.outputs, second.outputs, strict=True)
        rows = tuple(rows_in_step(first.tensors[a].shape, second.tensors[b].shape) for a, b in outputs)
    except ValueError:
        return None
    return without(replace(first, ops=ops, rows=rows), lists.keys())


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same, as far as they have values; NaN is NaN."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return a.is_meta or b.is_meta or bool(((a == b) | ((a != a) & (b != b))).all())


def _affine(a: Any, b: Any, batches: tuple[int, int]) -> Any:
    if isinstance(a, tuple | list):
        return tuple(_affine(x, y, batches) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping):
        return {name: _affine(a[name], b[name], batches) for name in a}
    if type(a) is int and a != b:
        if -1 in (a, b):
            raise ValueError("a size that is left open at one batch size only")
        slope, rest = divmod(b - a, batches[1] - batches[0])
        if rest:
            raise ValueError("not affine in the batch size")
        return Affine(a - slope * batches[0], slope)
    if isinstance(a, float) and a != b:
        raise ValueError("a float that depends on the batch size")
    return a


def has_offsets(merged: Recording) -> bool:
    """Whether a number that follows the batch is no multiple of it."""
    given = (leaves((op.args, *op.kwargs.values()), Affine) for op in merged.ops)
    return any(number.base != 0 for number in chain.from_iterable(given))
