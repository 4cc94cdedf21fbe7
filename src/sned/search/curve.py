"""The trade-off: what each amount of a cost would do to the error, from the whole network to the smallest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sned.search.knapsack import knapsack
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
        ValueError: fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"`points` must be at least 2, got {points}.")
    space = Space(replace(problem, limits={cost: np.inf}, sparsity=None))
    dense, smallest = space.costs(np.stack([space.dense, space.tops]))[:, 0]
    found: list[Found] = []
    for amount in np.linspace(smallest, dense, points):
        plan = knapsack(replace(problem, limits={cost: float(amount)}, sparsity=None))
        # A larger budget is never worse: its best plan so far is the smaller one's.
        if not found or plan.error < found[-1].error:
            found.append(plan)
    return tuple(reversed(found))
