"""Searches along a line of nested plans, from the whole network to the smallest: the first that fits is the
answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sned.graph.ir import IntArray
from sned.search.space import Space

AT_ONCE = 128
"""Plans costed in one call."""


def first_that_fits(space: Space, count: int, plan: Callable[[IntArray], IntArray]) -> IntArray:
    """The first of a line of plans that is within the limits.

    Args:
        space: of the problem.
        count: how many plans there are, at least 1.
        plan: from positions `[P]` in the line to levels `[P, groups]`; each plan keeps no more than those
            before.

    Returns:
        Levels `[groups]`.

    Raises:
        BudgetError: none fits.
    """
    start, stop = 0, count - 1
    while True:
        positions = np.unique(np.linspace(start, stop, min(AT_ONCE, stop - start + 1)).astype(np.int64))
        levels = plan(positions)
        fits = space.fits(space.costs(levels))
        if not fits.any():
            raise space.unreachable(levels[-1])
        first = int(np.flatnonzero(fits)[0])
        if first == 0 or positions[first] - positions[first - 1] == 1:
            return np.asarray(levels[first], np.int64)
        start, stop = int(positions[first - 1]) + 1, int(positions[first])
