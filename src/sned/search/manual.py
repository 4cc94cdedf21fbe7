"""Exactly what the user's rules say, and nothing else is cut."""

from __future__ import annotations

from sned.errors import BudgetError, PlanError
from sned.search.registry import searcher
from sned.search.space import Found, Problem, Space


@searcher("manual", "what your rules say, group by group")
def manual(problem: Problem) -> Found:
    """Cut the groups that the rules give a sparsity; the others stay whole.

    Raises:
        PlanError: the rules give no group a sparsity, or see `Rules.choices`.
        BudgetError: limits are given too, and the rules do not meet them.
    """
    if not problem.rules.sparsity:
        names = ", ".join(repr(group.name) for group in problem.graph.groups[:4])
        raise PlanError(
            "A manual plan cuts the groups that its rules give a sparsity, and these give none. Say what goes, "
            f"such as `rules={{'sparsity': {{{problem.graph.groups[0].name!r}: 0.5}}}}`; groups here: {names} …"
        )
    space = Space(problem)
    if not space.fits(space.costs(space.dense[None]))[0]:
        raise BudgetError(
            f"The rules of a manual plan must meet the budget: {space.missed(space.dense, 'they reach')}. Give more "
            "groups a sparsity, a higher one, or leave the rest to a search such as 'knapsack'."
        )
    return space.finish("manual", space.dense)
