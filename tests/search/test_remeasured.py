"""Sensitivities measured again on the way to a budget."""

from __future__ import annotations

import numpy as np
import pytest

from sned.errors import BudgetError
from sned.saliency import score, sensitivities, weighed
from sned.search import UNITS, Problem, remeasured, search
from tests.saliency.cases import evidence


def test_the_first_share_is_the_whole_network() -> None:
    given = evidence("residual")
    scores = score("reconstruction", given)
    expected = weighed(scores, sensitivities(given, scores))
    found = remeasured(Problem(given.graph, scores, limits={UNITS: 20}), given, way=(0.0,)).scores
    for name, error in expected.error.items():
        np.testing.assert_allclose(found.error[name], error)


def test_later_shares_measure_around_what_is_left() -> None:
    given = evidence("residual")
    scores = score("reconstruction", given)
    problem = Problem(given.graph, scores, limits={UNITS: 20})
    first = remeasured(problem, given, way=(0.0,))
    size = sum(group.size for group in given.graph.groups)
    half = search("knapsack", Problem(given.graph, first.scores, limits={UNITS: size - 0.5 * (size - 20)}))
    around = {name: len(units) for name, units in half.plan.removed.items()}
    expected = weighed(first.scores, sensitivities(given, first.scores, around=around))
    found = remeasured(problem, given).scores
    assert found.criterion == "reconstruction, weighed by sensitivity"
    for name, error in expected.error.items():
        np.testing.assert_allclose(found.error[name], error)


def test_unreachable_limits_are_refused() -> None:
    given = evidence("residual")
    problem = Problem(given.graph, score("reconstruction", given), limits={UNITS: 0.5})
    with pytest.raises(BudgetError, match=r"units of at most 0\.5 was asked, the smallest reachable is 4"):
        search("knapsack", remeasured(problem, given))
