"""Scores weighed by what cuts do to the answers; where need be, measured again along the way to the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sned.errors import BudgetError
from sned.saliency import Evidence, curvatures, sensitivities, weighed
from sned.search.knapsack import knapsack
from sned.search.space import Problem, Space

WAY = (0.0, 0.5)
"""Shares of what is to be saved at which sensitivities are measured: on the whole network, and half-way."""


def remeasured(problem: Problem, evidence: Evidence, *, way: Sequence[float] = WAY) -> Problem:
    """The problem with its scores weighed by what cuts do to the answers.

    Groups that their readers alone feel are told by the curvature of the answers at the whole network. The others are
    cut for real, and what such a layer may lose depends on what the others have lost. So the whole network's
    sensitivities are used to go part of the way, those of the network reached there to go further, and the last ones
    are for the search.

    Args:
        problem: with unweighed scores; where it has neither limits nor a sparsity there is no way to go.
        evidence: with a calibration.
        way: shares of the saving, rising from 0, below 1.

    Raises:
        BudgetError: the limits cannot be met.
        CalibrationError: there is no calibration.
    """
    found = curvatures(evidence, problem.scores)
    problem = replace(problem, scores=weighed(problem.scores, found))
    others = [group.name for group in problem.graph.groups if group.name not in found]
    if not others:
        return problem
    for share in way if problem.limits or problem.sparsity is not None else way[:1]:
        around = _gone(problem, share) if share > 0 else {}
        cut = sensitivities(evidence, problem.scores, groups=others, around=around)
        problem = replace(problem, scores=weighed(problem.scores, cut))
    return problem


def _gone(problem: Problem, share: float) -> dict[str, int]:
    """How many units of each group are gone once a share of the saving is made."""
    space = Space(problem)
    dense = space.costs(space.dense[None])[0]
    bounds = dense - share * np.maximum(dense - space.bounds, 0.0)
    limits = dict(zip(space.limits, bounds.tolist(), strict=True))
    try:
        found = knapsack(replace(problem, limits=limits, sparsity=None))
    except BudgetError:
        # Then all of the way is out of reach too, and what was asked is what an error should speak of.
        found = knapsack(replace(problem, limits=space.limits, sparsity=None))
    return {name: len(units) for name, units in found.plan.removed.items()}
