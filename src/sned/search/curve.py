"""The trade-off: what each amount of a cost would do to the error, from the whole network to the smallest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sned.errors import UserError
from sned.graph.ir import IntArray
from sned.search.knapsack import best, path
from sned.search.moves import Neighbourhood
from sned.search.space import Found, Problem, Space


def curve(problem: Problem, cost: str, *, points: int = 10) -> tuple[Found, ...]:
    """The best plans at `points` amounts of one cost, evenly spaced from the whole network to the smallest.

    Args:
        problem: its limits and sparsity are not used.
        cost: a field of `Costs`, or "units".
        points: at least 2; fewer come back where two amounts lead to one plan.

    Returns:
        Plans, the whole network first, each smaller and of no less error than the one before.

    Raises:
        BudgetError: no model tells this cost.
        UserError: fewer than 2 points.
    """
    if points < 2:
        raise UserError(f"`points` must be at least 2, got {points}.")
    space = Space(replace(problem, limits={cost: np.inf}, sparsity=None))
    dense, smallest = space.costs(np.stack([space.dense, space.tops]))[:, 0]
    steps, levels = Neighbourhood(space), space.dense
    chosen: list[tuple[Space, IntArray]] = []
    for amount in np.linspace(dense, smallest, points):
        within = space.bounded(np.array([amount]))
        *_, levels = path(within, steps, levels)
        chosen.append((within, best(within, steps, levels)))
    found: list[Found] = []
    for within, plan in reversed(chosen):
        # More room is never worse: the plan for less would do too.
        if not found or within.errors(plan[None])[0] < found[-1].error:
            found.append(within.finish("knapsack", plan))
    return tuple(reversed(found))
