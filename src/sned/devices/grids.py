"""At which widths ops are measured, and where other widths lie between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sned.devices.kernels import FloatArray

Point = tuple[float, ...]
Grid = Callable[[Point, Point, int, int], tuple[FloatArray, ...]]
"""(lowest widths, highest widths, block, density) -> the coordinates to measure on each axis."""

Coordinates = Callable[[Sequence[FloatArray], int], tuple[FloatArray, ...]]
"""(widths, block) -> the coordinates on the axes of the grid."""

SET = 4
"""Blocks of output channels that a blocked convolution computes at once; a smaller last set is slower."""


def _even(low: float, high: float, density: int) -> FloatArray:
    """Go from low to high in equal steps: what grows linearly needs its ends, and one between to be sure."""
    count = 1 if low == high else min(density, int(high - low) + 1)
    return np.unique(np.rint(np.linspace(low, high, count)))


def _geometric(low: float, high: float, density: int) -> FloatArray:
    """From low to high in equal ratios, for what crosses the caches on the way."""
    low = max(low, 1.0)
    count = 1 if high <= low else min(density + 1, int(high - low) + 1)
    return np.unique(np.rint(np.geomspace(low, max(low, high), count)))


def each(kinds: str) -> Callable[[Point, Point, int, int], tuple[FloatArray, ...]]:
    """One axis a width, "e"ven or "g"eometric."""
    spacing = {"e": _even, "g": _geometric}

    def grid(low: Point, high: Point, block: int, density: int) -> tuple[FloatArray, ...]:
        del block
        # Three points an axis on more than two axes are many: what is bilinear is well met by its corners.
        free = sum(a < b for a, b in zip(low, high, strict=True))
        density = max(2, density - 1) if free > 2 else density
        return tuple(spacing[kind](a, b, density) for kind, a, b in zip(kinds, low, high, strict=True))

    return grid


def as_they_are(widths: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Take widths for coordinates."""
    del block
    return tuple(widths)


def blocks(channels: FloatArray | float, block: int) -> FloatArray:
    """Count the blocks that channels fill, the last one perhaps in part."""
    return np.ceil(np.asarray(channels, dtype=np.float64) / block)


def _set_grid(low: float, high: float, block: int, density: int) -> tuple[FloatArray, FloatArray]:
    """Whole sets before the last one, and blocks in the last one."""
    first, last = (int(blocks(width, block)) for width in (low, high))
    before = _even((first - 1) // SET, (last - 1) // SET, density)
    inside = np.arange(1, min(last, SET) + 1).astype(np.float64)
    return before, inside if first < last else np.array([(first - 1) % SET + 1.0])


def _set_coordinates(channels: FloatArray, block: int) -> tuple[FloatArray, FloatArray]:
    before = blocks(channels, block) - 1
    return before // SET, before % SET + 1


def conv_grid(round_inputs: bool) -> Grid:
    """Batch, inputs (in blocks if rounded), and outputs in sets, for a convolution that writes blocks."""

    def grid(low: Point, high: Point, block: int, density: int) -> tuple[FloatArray, ...]:
        if round_inputs:
            inputs = _even(float(blocks(max(low[1], block), block)), float(blocks(high[1], block)), density)
        else:
            inputs = _even(low[1], min(high[1], block - 1), density)
        return np.array([low[0]]), inputs, *_set_grid(low[2], high[2], block, density)

    return grid


def conv_coordinates(round_inputs: bool) -> Coordinates:
    """Find the coordinates that belong to `conv_grid`."""

    def coordinates(widths: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
        n, ci, co = widths
        return n, blocks(ci, block) if round_inputs else ci, *_set_coordinates(co, block)

    return coordinates


def conv_widths(round_inputs: bool) -> Coordinates:
    """Take `conv_coordinates` back, as far as rounding allows."""

    def widths(coordinates: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
        n, inputs, before, last = coordinates
        return n, inputs * block if round_inputs else inputs, (before * SET + last) * block

    return widths


def grouped_widths(coordinates: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Take `grouped_coordinates` back."""
    n, groups, inputs, before, last = coordinates
    return n, groups, inputs * block, (before * SET + last) * block


def blocked_widths(coordinates: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Take `blocked_coordinates` back."""
    return coordinates[0], coordinates[1] * block


def reorder_widths(coordinates: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Take `reorder_coordinates` back."""
    n, before, rest = coordinates
    return n, before * block + rest


def plain_conv_grid(low: Point, high: Point, block: int, density: int) -> tuple[FloatArray, ...]:
    """Batch, inputs and outputs of a convolution in plain layout.

    Narrower inputs than a block are read directly by a blocked kernel, where there is one. A single output is
    a product with a vector, which is no measure of those with more.
    """
    inputs = _even(min(max(low[1], block), high[1]), high[1], density)
    return np.array([low[0]]), inputs, _even(min(max(low[2], 2), high[2]), high[2], density)


def grouped_grid(low: Point, high: Point, block: int, density: int) -> tuple[FloatArray, ...]:
    """Batch, groups, and as for a convolution the inputs and outputs of a group."""
    inputs = _even(float(blocks(low[2], block)), float(blocks(high[2], block)), density)
    return (
        np.array([low[0]]),
        _even(low[1], high[1], density),
        inputs,
        *_set_grid(low[3], high[3], block, density),
    )


def grouped_coordinates(widths: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Find the coordinates that belong to `grouped_grid`."""
    n, groups, inputs, outputs = widths
    return n, groups, blocks(inputs, block), *_set_coordinates(outputs, block)


def blocked_channels(low: Point, high: Point, block: int, density: int) -> tuple[FloatArray, ...]:
    """Batch, and channels in blocks."""
    return np.array([low[0]]), _even(float(blocks(low[1], block)), float(blocks(high[1], block)), density)


def blocked_coordinates(widths: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Find the coordinates that belong to `blocked_channels`."""
    return widths[0], blocks(widths[1], block)


def reorder_grid(low: Point, high: Point, block: int, density: int) -> tuple[FloatArray, ...]:
    """Whole blocks before the last one, and channels in the last one.

    A last block that is nearly full is much slower than a full one: its channels lie a power of two apart,
        fall on the
    same places of the cache, and are more than it has ways.
    """
    first, last = (int(blocks(width, block)) - 1 for width in (low[1], high[1]))
    quarters = np.arange(1, 5) * block // 4
    rest = np.unique(np.minimum([1, *quarters, quarters[2] + 1, block - 1], high[1] if last == 0 else block))
    return np.array([low[0]]), _even(first, last, density), np.maximum(rest, 1).astype(np.float64)


def reorder_coordinates(widths: Sequence[FloatArray], block: int) -> tuple[FloatArray, ...]:
    """Find the coordinates that belong to `reorder_grid`."""
    before = blocks(widths[1], block) - 1
    return widths[0], before, widths[1] - before * block
