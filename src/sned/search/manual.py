"""Exactly what the user's rules say, and nothing else is cut."""

from __future__ import annotations

from sned.search.registry import searcher
from sned.search.space import Found, Problem, Space


@searcher("manual", "what your rules say, group by group")
def manual(problem: Problem) -> Found:
    """Cut the groups that the rules give a sparsity; the others stay whole.

    Raises:
        PlanError: see `Rules.choices`.
        BudgetError: limits are given too, and the rules do not meet them.
    """
    space = Space(problem)
    return space.finish("manual", space.dense)
