"""Sensitivities measured again on the way to a budget."""

from __future__ import annotations

import numpy as np
import pytest

from sned.errors import BudgetError
from sned.saliency import curvatures, score, sensitivities, weighed
from sned.search import UNITS, Problem, remeasured, search
from tests.saliency.cases import evidence


def test_what_readers_alone_feel_is_told_by_curvature() -> None:
    given = evidence("residual")
    scores = score("reconstruction", given)
    expected = weighed(scores, curvatures(given, scores))
    found = remeasured(Problem(given.graph, scores, limits={UNITS: 20}), given).scores
    assert found.criterion == "reconstruction, weighed by sensitivity"
    for name, error in expected.error.items():
        np.testing.assert_allclose(found.error[name], error)


def test_without_a_way_to_go_the_others_are_cut_from_the_whole_network() -> None:
    given = evidence("group_norm")
    scores = score("reconstruction", given)
    expected = weighed(scores, sensitivities(given, scores))
    found = remeasured(Problem(given.graph, scores), given).scores
    for name, error in expected.error.items():
        np.testing.assert_allclose(found.error[name], error)


def test_later_shares_measure_the_others_around_what_is_left() -> None:
    given = evidence("fused_qkv")
    scores = score("reconstruction", given)
    problem = Problem(given.graph, scores, limits={UNITS: 12})
    near = curvatures(given, scores)
    others = [group.name for group in given.graph.groups if group.name not in near]
    assert near
    assert others
    whole = weighed(scores, near | sensitivities(given, scores, groups=others))
    size = sum(group.size for group in given.graph.groups)
    half = search("knapsack", Problem(given.graph, whole, limits={UNITS: size - 0.5 * (size - 12)}))
    around = {name: len(units) for name, units in half.plan.removed.items()}
    assert around
    expected = weighed(whole, sensitivities(given, whole, groups=others, around=around))
    found = remeasured(problem, given).scores
    for name, error in expected.error.items():
        np.testing.assert_allclose(found.error[name], error, rtol=1e-6)


def test_unreachable_limits_are_refused() -> None:
    given = evidence("residual")
    problem = Problem(given.graph, score("reconstruction", given), limits={UNITS: 0.5})
    with pytest.raises(BudgetError, match=r"units of at most 0\.5 was asked, the smallest reachable is 4"):
        search("knapsack", remeasured(problem, given))
