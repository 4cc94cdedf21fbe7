"""The size of every axis under a plan and at any batch size, and op arguments that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sned.graph.coupling import Keep
from sned.graph.example import ArgsAndKwargs
from sned.graph.ir import Affine, Graph, Op, Ref, leaves
from sned.graph.rules import RESIZERS


class Sizes:
    """Sizes of a graph's tensors when `keep` remains and the batch is `batch` (default: as traced)."""

    def __init__(self, graph: Graph, keep: Keep, batch: int | None = None) -> None:
        self._graph = graph
        self._keep = keep
        self._batch = graph.batch if batch is None else batch
        self._fractions: dict[tuple[int, int], tuple[int, int]] = {}
        self._plain: dict[int, tuple[Any, ...]] = {}
        self._arguments: dict[int, ArgsAndKwargs] = {}
        self._integers: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def old(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a tensor as recorded."""
        return self._graph.tensors[ref.id].shape

    def kept(self, tensor: int, axis: int, size: int, start: int = 0, stop: int | None = None) -> int:
        """How many of the positions `start:stop` of an axis remain, when the whole axis has `size` of them.

        `size` may be larger than recorded: a batch merged into the axis repeats its positions.
        """
        mask = self._keep.mask(tensor, axis)
        recorded = self._graph.tensors[tensor].shape[axis]
        if mask is None:
            return (size if stop is None else min(stop, size)) - start
        if size == recorded:
            return int(mask[start:stop].sum())
        return size * int(mask.sum()) // recorded

    def untouched(self, tensor: int, axis: int) -> bool:
        """Whether an axis loses nothing."""
        mask = self._keep.mask(tensor, axis)
        return mask is None or bool(mask.all())

    def rows(self, tensor: int, axis: int, count: Any) -> int:
        """Of as many equal parts of an axis as an op was recorded with, how many keep something at this batch size."""
        now, then = filled(count, self._batch), filled(count, self._graph.batch)
        mask = self._keep.mask(tensor, axis)
        return int(now if mask is None else now * int(mask.reshape(then, -1).any(axis=1).sum()) // then)

    def fraction(self, tensor: int, axis: int) -> tuple[int, int]:
        """Kept and recorded positions of an axis."""
        if (tensor, axis) not in self._fractions:
            mask = self._keep.mask(tensor, axis)
            recorded = self._graph.tensors[tensor].shape[axis]
            self._fractions[tensor, axis] = (recorded if mask is None else int(mask.sum()), recorded)
        return self._fractions[tensor, axis]

    def scaled(self, op: Op, values: tuple[int, ...], output: int = 0) -> tuple[int, ...]:
        """Sizes given for the output of `op` (-1 allowed), each scaled to what its axis keeps."""
        number = op.outputs[output]
        assert number is not None
        return tuple(
            v if v < 0 else v * kept // max(recorded, 1)
            for axis, v in enumerate(values)
            for kept, recorded in [self.fraction(number, axis)]
        )

    def recorded(self, number: int) -> tuple[int, ...]:
        """Shape of a tensor at this batch size without a plan, where the batch is the traced one."""
        return self._graph.tensors[number].shape

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of a tensor under the plan at the traced batch size."""
        return tuple(
            self.fraction(number, axis)[0] if size else 0 for axis, size in enumerate(self.recorded(number))
        )

    def plain(self, op: Op) -> tuple[Any, ...]:
        """The arguments of `op` at this batch size, without a plan."""
        if op.index not in self._plain:
            self._plain[op.index] = filled(op.args, self._batch) if op.grows else op.args
        return self._plain[op.index]

    def arguments(self, op: Op) -> ArgsAndKwargs:
        """The arguments of `op` at this batch size and under this plan; tensors stay `Ref`s."""
        if op.index not in self._arguments:
            args, resizer = self.plain(op), RESIZERS.get(op.name)
            resized = resizer(self, op, args) if resizer else args
            self._arguments[op.index] = (
                resized,
                filled(op.kwargs, self._batch) if op.grows else dict(op.kwargs),
            )
        return self._arguments[op.index]

    def integers(self, op: Op) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Every integer among the arguments of `op`, in order: without a plan, and under this one."""
        if op.index not in self._integers:
            plain, (args, _) = self.plain(op), self.arguments(op)
            old = tuple(integers_in(plain))
            self._integers[op.index] = old, old if args is plain else tuple(integers_in(args))
        return self._integers[op.index]


def integers_in(value: Any) -> Iterator[int]:
    """The integers of a nest, in order."""
    return (item for item in leaves(value) if type(item) is int)


def filled(value: Any, batch: int) -> Any:
    """Nested arguments with every `Affine` evaluated."""
    if isinstance(value, Affine):
        return value(batch)
    if isinstance(value, tuple | list):
        return tuple(filled(item, batch) for item in value)
    if isinstance(value, Mapping):
        return {name: filled(item, batch) for name, item in value.items()}
    return value
