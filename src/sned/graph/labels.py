"""Labels of a tensor: which position on which axis is which unit.

A tensor carries boxes. A `Box` is an array of integers of the tensor's rank, of size 1 on the axes along which it does
not vary; no two boxes of a tensor vary along the same axis. The output of a convolution carries one of shape
`(1, C, 1, 1)`; after `view(B, N, heads, dim)` it is `(1, 1, heads, dim)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from sned.graph.ir import IntArray


@dataclass(frozen=True, eq=False)
class Box:
    """Labels that vary along one axis (`free`), or along several.

    Along several, positions form a rectangle that pruning must keep one: an index of a slab axis goes with all that
    lies on it (its label stands in `slabs`), and on the free axis every row loses equally many positions of its own.
    A `filler` labels values that are the same at every position (zeros, a broadcast): it takes any size. Where
    labels are `lifted`, values may be other than zero although all that makes them is zero: behind a sigmoid, say.
    """

    ids: IntArray
    free: int
    slabs: Mapping[int, IntArray] = field(default_factory=dict)
    filler: bool = False
    lifted: bool = False

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which the labels vary."""
        return frozenset((self.free, *self.slabs))

    def moved(self, where: Mapping[int, int], rank: int) -> Box:
        """The same labels with every axis renamed; `where` names the new place of (at least) the varying axes."""
        if not self.slabs:
            return line(self.ids, where[self.free], rank, filler=self.filler, lifted=self.lifted)
        order = sorted(self.axes, key=lambda axis: where[axis])
        sizes = {where[axis]: self.ids.shape[axis] for axis in order}
        compact = np.moveaxis(self.ids, order, range(len(order))).reshape([self.ids.shape[a] for a in order])
        ids = compact.reshape([sizes.get(axis, 1) for axis in range(rank)])
        slabs = {where[a]: s for a, s in self.slabs.items()}
        return replace(self, ids=ids, free=where[self.free], slabs=slabs)

    def rows(self) -> IntArray:
        """The labels along the free axis, one row for each different place on the slab axes: `[rows, size]`."""
        if not self.slabs:
            return self.ids.reshape(1, -1)
        rows = np.moveaxis(self.ids, self.free, -1).reshape(-1, self.ids.shape[self.free])
        _, first = np.unique(rows[:, 0], return_index=True)
        return rows[np.sort(first)]


Boxes = tuple[Box, ...]


def line(ids: IntArray, axis: int, rank: int, *, filler: bool = False, lifted: bool = False) -> Box:
    """A box that varies along one axis only."""
    return Box(upright(ids, axis, rank), axis, filler=filler, lifted=lifted)


def lift(boxes: Boxes) -> Boxes:
    """The same labels on values that may be other than zero."""
    return tuple(replace(box, lifted=True) for box in boxes)


def covering(boxes: Boxes, axis: int) -> Box | None:
    """The box that varies along `axis`, if there is one."""
    return next((box for box in boxes if axis == box.free or axis in box.slabs), None)


def matching_runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split a reshape into the smallest runs of axes with equal products.

    >>> matching_runs([2, 6, 5], [2, 2, 3, 5])
    [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    """
    if 0 in old:  # nothing is there: any two such shapes are views of each other
        old, new = ([size or _NOTHING for size in shape] for shape in (old, new))
        if prod(old) != prod(new):
            return [(tuple(range(len(old))), tuple(range(len(new))))]
    runs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = ([i], [j]) if i < len(old) and j < len(new) else ([], [])
        if not left:
            runs.append((tuple(range(i, len(old))), tuple(range(j, len(new)))))
            break
        a, b = old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a *= old[i]
                left.append(i)
                i += 1
            else:
                b *= new[j]
                right.append(j)
                j += 1
        runs.append((tuple(left), tuple(right)))
    return runs


_NOTHING = 2**31 - 1
"""A prime that stands for a size of 0."""


def varying_axes(array: IntArray) -> tuple[int, ...]:
    """The axes along which an array is not constant."""
    return tuple(
        axis
        for axis, size in enumerate(array.shape)
        if size > 1 and bool((array != array.take([0], axis)).any())
    )


def squeezed(array: IntArray, keep: Sequence[int]) -> IntArray:
    """The first entry along every axis that is not in `keep`, with size 1 left in its place."""
    index = tuple(slice(None) if axis in keep else slice(0, 1) for axis in range(array.ndim))
    return array[index]


def upright(values: IntArray, axis: int, rank: int) -> IntArray:
    """One value for each index of an axis, as an array of the given rank."""
    return values.reshape([-1 if a == axis else 1 for a in range(rank)])
