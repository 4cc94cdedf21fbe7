"""The trade-off: what each amount of a cost would do to the error, from the whole network to the smallest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sned.errors import UserError
from sned.graph.ir import IntArray
from sned.search.global_ranking import ranked
from sned.search.knapsack import best, path
from sned.search.moves import Neighbourhood
from sned.search.space import Found, Problem, Space


def curve(problem: Problem, cost: str, *, points: int = 10, search_by: str = "knapsack") -> tuple[Found, ...]:
    """The best plans at `points` amounts of one cost, evenly spaced from the whole network to the smallest.

    Args:
        problem: its limits and sparsity are not used.
        cost: a field of `Costs`, or "units".
        points: at least 2; fewer come back where two amounts lead to one plan.
        search_by: "knapsack", or "global" where importances rank units and are no error that adds up.

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
    spaces = [space.bounded(np.array([amount])) for amount in np.linspace(dense, smallest, points)]
    levels = map(ranked, spaces) if search_by == "global" else _cheapest(spaces)
    chosen = list(zip(spaces, levels, strict=True))
    found: list[Found] = []
    for within, plan in reversed(chosen):
        # More room is never worse: the plan for less would do too.
        if not found or within.errors(plan[None])[0] < found[-1].error:
            found.append(within.finish(search_by, plan))
    return tuple(reversed(found))


def _cheapest(spaces: Sequence[Space]) -> Iterator[IntArray]:
    """The choice of the least error in each, every one found from the one before."""
    steps, levels = Neighbourhood(spaces[0]), spaces[0].dense
    for space in spaces:
        *_, levels = path(space, steps, levels)
        yield best(space, steps, levels)
