"""Scores weighed by what cuts do to the network's answers, measured again along the way to the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sned.errors import BudgetError
from sned.saliency.registry import Evidence
from sned.saliency.sensitivity import sensitivities, weighed
from sned.search.knapsack import knapsack
from sned.search.space import Problem, Space

WAY = (0.0, 0.5)
"""Shares of what is to be saved at which sensitivities are measured: on the whole network, and half-way."""


def remeasured(problem: Problem, evidence: Evidence, *, way: Sequence[float] = WAY) -> Problem:
    """The problem with its scores weighed by sensitivities around ever smaller networks on the way to its
    limits.

    What a layer may lose depends on what the others have lost. So the whole network's sensitivities are used
    to go part of the way, those of the network reached there to go further, and the last ones are for the
    search.

    Args:
        problem: with unweighed scores and with limits or a sparsity.
        evidence: with a calibration.
        way: shares of the saving, rising from 0, below 1.

    Raises:
        BudgetError: the limits cannot be met.
        CalibrationError: there is no calibration.
    """
    for share in way:
        around = _gone(problem, share) if share > 0 else {}
        found = sensitivities(evidence, problem.scores, around=around)
        problem = replace(problem, scores=weighed(problem.scores, found))
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
