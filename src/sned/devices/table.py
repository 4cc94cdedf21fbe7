"""Interpolation on a grid of measurements, for many points at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from sned.devices.kernels import FloatArray


@dataclass(frozen=True, eq=False)
class Table:
    """A function known on a grid: multilinear between its points, and linear beyond the outermost two.

    Attributes:
        axes: for each axis its coordinates, ascending; an axis of one coordinate counts for nothing.
        values: `[len(axis) for axis in axes]`.
    """

    axes: tuple[FloatArray, ...]
    values: FloatArray

    def __call__(self, coordinates: Sequence[FloatArray]) -> FloatArray:
        """Evaluate at `P` points, given as one `[P]` array an axis; never below zero."""
        places = [_place(axis, at) for axis, at in zip(self.axes, coordinates, strict=True) if len(axis) > 1]
        values = self.values.reshape([len(axis) for axis in self.axes if len(axis) > 1])
        total: FloatArray = np.zeros(len(coordinates[0]) if len(coordinates) else 1)
        for corner in product((0, 1), repeat=len(places)):
            index = tuple(low + up for (low, _), up in zip(places, corner, strict=True))
            weight: FloatArray | float = 1.0
            for (_, part), up in zip(places, corner, strict=True):
                weight = weight * (part if up else 1 - part)
            total = total + weight * values[index]
        return np.maximum(total, 0.0)


def _place(axis: FloatArray, at: FloatArray) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], FloatArray]:
    """The cell of the grid that each point lies in (or is nearest to), and how far along it."""
    # Not np.clip, which takes four times as long on short arrays.
    low = np.minimum(np.maximum(np.searchsorted(axis, at, side="right") - 1, 0), len(axis) - 2)
    return low, (at - axis[low]) / (axis[low + 1] - axis[low])
