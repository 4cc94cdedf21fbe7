"""The same sparsity in every group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sned.errors import BudgetError
from sned.graph.ir import IntArray
from sned.saliency.scores import FloatArray
from sned.search.nested import first_that_fits
from sned.search.registry import searcher
from sned.search.rules import ROUNDING
from sned.search.space import Found, Problem, Space


@searcher("uniform", "the same fraction of every group")
def uniform(problem: Problem) -> Found:
    """Remove the same fraction of every group: the given sparsity, or the smallest that meets the limits.

    With `sparsity` s every group keeps the fewest units that are at least `(1 - s)` of it and allowed; each
    cell of a group keeps at least one.

    Raises:
        BudgetError: `sparsity` is not in [0, 1), or no sparsity meets the limits.
    """
    if problem.sparsity is not None:
        if not 0 <= problem.sparsity < 1:
            raise BudgetError(f"`sparsity` must be in [0, 1), got {problem.sparsity:g}.")
        space = Space(replace(problem, sparsity=None))
        return space.finish("uniform", _at(space, np.array([problem.sparsity]))[0])
    space = Space(problem)
    return space.finish("uniform", equal_shares(space))


def equal_shares(space: Space) -> IntArray:
    """Levels at the smallest sparsity of every group that meets the limits.

    Raises:
        BudgetError: none does.
    """
    sizes = np.array([[group.size] for group in space.groups])
    # Plans change only where some group reaches its next count.
    steps = np.unique(np.append(0.0, 1 - space.kept / sizes))
    return first_that_fits(space, len(steps), lambda at: _at(space, steps[at]))


def _at(space: Space, sparsity: FloatArray) -> IntArray:
    """Levels `[P, groups]` of sparsities `[P]`."""
    sizes = np.array([group.size for group in space.groups])
    wanted = sizes * (1 - sparsity[:, None]) - ROUNDING * sizes
    real = np.arange(space.kept.shape[1]) <= space.tops[:, None]
    reached = (space.kept[None] >= wanted[:, :, None]) & real
    return np.asarray(np.maximum(reached.sum(axis=2) - 1, 0), np.int64)
