"""All units of all groups in one ranking; the least important go first, wherever they are."""

from __future__ import annotations

import numpy as np

from sned.graph.ir import IntArray
from sned.search.nested import first_that_fits
from sned.search.registry import searcher
from sned.search.space import Found, Problem, Space


@searcher("global", "all units in one ranking across layers")
def global_ranking(problem: Problem) -> Found:
    """Remove units in the order of what each adds to the error, across all groups, until the limits are met.

    What a unit costs plays no part. Where the rules allow only some counts, the units between two of them
    rank by their mean. A group's ranks never fall, so that its own order holds.

    Raises:
        BudgetError: the limits cannot be met.
    """
    space = Space(problem)
    return space.finish("global", ranked(space))


def ranked(space: Space) -> IntArray:
    """Levels once the fewest units of one ranking are gone that meet the limits.

    Raises:
        BudgetError: no number of them does.
    """
    group, level = np.nonzero(np.arange(space.kept.shape[1])[None] <= space.tops[:, None])
    group, level = group[level > 0], level[level > 0]
    units = space.kept[group, level - 1] - space.kept[group, level]
    rank = (space.error[group, level] - space.error[group, level - 1]) / units
    for row in range(len(space.groups)):
        rank[group == row] = np.maximum.accumulate(rank[group == row])
    line = group[np.argsort(rank, kind="stable")]

    def plans(positions: IntArray) -> IntArray:
        return np.stack([np.bincount(line[:at], minlength=len(space.groups)) for at in positions])

    return first_that_fits(space, len(line) + 1, plans)
