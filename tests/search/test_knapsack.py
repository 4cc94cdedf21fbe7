"""The knapsack against looking at every plan."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sned.errors import UserError
from sned.search import Problem, curve, search
from tests.search.cases import ChainCost, best, chain, check, random_scores, scores


def relative_gap(problem: Problem) -> float:
    """How much more error the knapsack accepts than there has to be, relative to all of it."""
    found = search("knapsack", problem)
    check(problem, found)
    largest = sum(problem.scores.error[group.name][-1] for group in problem.graph.groups)
    return (found.error - best(problem)) / largest


@pytest.mark.parametrize("stair", [1, 4])
@pytest.mark.parametrize("convex", [True, False])
def test_near_the_best_of_all_plans(stair: int, convex: bool) -> None:
    graph, cost = chain(6, 9, 5), ChainCost(stair)
    name = "macs" if stair == 1 else "latency_ms"
    dense = cost.evaluate(np.array([[6.0, 9.0, 5.0]])).at(0)[name]
    gaps = [
        relative_gap(Problem(graph, random_scores(graph, seed, convex=convex), cost, {name: share * dense}))
        for seed in range(12)
        for share in (0.3, 0.5, 0.8)
    ]
    assert np.mean(gaps) < 0.005
    assert np.max(gaps) < 0.06


def gaps_where_few_are(few: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(sys.modules["sned.search.knapsack"], "FEW", few)
    graph, cost = chain(6, 16, 12), ChainCost(4)
    dense = cost.evaluate(np.array([[6.0, 16.0, 12.0]])).at(0)
    limited: tuple[tuple[str, float], ...] = (("latency_ms", 0.6), ("macs", 0.3))
    return [
        relative_gap(
            Problem(graph, random_scores(graph, seed, convex=False), cost, {name: share * dense[name]})
        )
        for seed in range(12)
        for name, share in limited
    ]


def test_of_few_plans_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(gaps_where_few_are(2**14, monkeypatch)) < 1e-9


def test_further_starts_come_nearer_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.mean(gaps_where_few_are(0, monkeypatch)) < 0.001


def test_several_limits_at_once() -> None:
    graph, cost = chain(6, 9, 5), ChainCost(4)
    gaps = [
        relative_gap(
            Problem(graph, random_scores(graph, seed, convex=True), cost, {"macs": 60, "latency_ms": 1.2})
        )
        for seed in range(20)
    ]
    assert np.mean(gaps) < 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shares=st.tuples(st.floats(0.15, 1), st.floats(0.15, 1)))
def test_more_room_is_hardly_ever_worse(seed: int, shares: tuple[float, float]) -> None:
    graph, cost = chain(6, 9, 5), ChainCost()
    given_scores = random_scores(graph, seed, convex=True)
    dense = cost.evaluate(np.array([[6.0, 9.0, 5.0]])).at(0)["macs"]
    errors = [
        search("knapsack", Problem(graph, given_scores, cost, {"macs": share * dense})).error
        for share in sorted(shares)
    ]
    largest = sum(given_scores.error[group.name][-1] for group in graph.groups)
    assert errors[1] <= errors[0] + 0.03 * largest


def test_a_computed_budget_is_met_within_two_percent() -> None:
    graph, cost = chain(48, 64, 32), ChainCost()
    dense = cost.evaluate(np.array([[48.0, 64.0, 32.0]])).at(0)["macs"]
    for seed, share in enumerate((0.2, 0.4, 0.6, 0.8)):
        found = search(
            "knapsack", Problem(graph, random_scores(graph, seed, convex=True), cost, {"macs": share * dense})
        )
        assert 0.98 * share * dense <= found.costs["macs"] <= share * dense


def test_stairs_are_jumped_in_one_go() -> None:
    """Fewer than eight units save nothing: the search must see to the next stair."""
    graph, cost = chain(32, 32), ChainCost(8)
    dense = cost.evaluate(np.array([[32.0, 32.0]])).at(0)["latency_ms"]
    steps = [0.001 * np.arange(1, 33), 0.1 * np.arange(1, 33)]
    found = search("knapsack", Problem(graph, scores(graph, steps), cost, {"latency_ms": 0.8 * dense}))
    assert found.counts.tolist() == [24, 32]


def test_units_that_cost_no_error_go_first_and_errors_that_cost_nothing_stay() -> None:
    graph, cost = chain(4, 4), ChainCost()
    found = search(
        "knapsack", Problem(graph, scores(graph, [[0, 0, 1, 1], [5, 5, 5, 5]]), cost, {"macs": 24.0})
    )
    assert found.error == 0
    assert found.counts.tolist() == [2, 4]


def test_cost_depends_on_both_sides() -> None:
    """What a unit saves is told by its neighbours' widths, which the cuts so far have changed."""
    graph, cost = chain(4, 12, 4), ChainCost()
    flat = [np.ones(4), np.ones(12), np.ones(4)]
    problem = Problem(graph, scores(graph, flat), cost, {"macs": 60.0})
    found = search("knapsack", problem)
    assert found.error == best(problem)


def test_permuting_the_units_permutes_the_plan() -> None:
    graph, cost = chain(6, 9, 5), ChainCost()
    first = random_scores(graph, 5, convex=True)
    rng = np.random.default_rng(0)
    moved = {name: rng.permutation(len(order)) for name, order in first.order.items()}
    second = type(first)("test", moved, first.error)
    plans = [search("knapsack", Problem(graph, s, cost, {"macs": 50.0})).plan for s in (first, second)]
    for name, units in plans[0].removed.items():
        assert sorted(moved[name][list(units)]) == list(plans[1].removed[name])


def test_curve_runs_from_the_whole_to_the_smallest() -> None:
    graph, cost = chain(6, 9, 5), ChainCost()
    problem = Problem(graph, random_scores(graph, 0, convex=True), cost)
    found = curve(problem, "macs", points=10)
    assert 5 <= len(found) <= 10
    macs, errors = [f.costs["macs"] for f in found], [f.error for f in found]
    assert macs == sorted(macs, reverse=True)
    assert errors == sorted(errors)
    assert found[0].plan.removed == {}
    assert found[-1].counts.tolist() == [1, 1, 1]


def test_curve_of_a_ranking_takes_its_plans() -> None:
    graph, cost = chain(6, 9, 5), ChainCost()
    problem = Problem(graph, random_scores(graph, 0, convex=True), cost)
    found = curve(problem, "macs", search_by="global")
    assert 5 <= len(found) <= 10
    for point in found[1:]:
        limits = {"macs": point.costs["macs"]}
        assert point.counts.tolist() == search("global", replace(problem, limits=limits)).counts.tolist()


def test_curve_needs_two_points() -> None:
    with pytest.raises(UserError, match="`points` must be at least 2, got 1"):
        curve(Problem(chain(4, 4), random_scores(chain(4, 4), 0, convex=True), ChainCost()), "macs", points=1)
