"""What every search must keep to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sned.errors import BudgetError, UserError
from sned.saliency import from_importance
from sned.search import SEARCHES, UNITS, Problem, Rules, search
from tests.search.cases import ChainCost, best, chain, check, grouped, random_scores

AUTOMATIC = sorted(set(SEARCHES) - {"manual"})


@pytest.mark.parametrize("name", AUTOMATIC)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.floats(0.1, 1.0), stair=st.sampled_from([1, 4]), convex=st.booleans()
)
def test_limits_are_kept_and_plans_are_valid(
    name: str, seed: int, share: float, stair: int, convex: bool
) -> None:
    graph, cost = chain(6, 9, 5), ChainCost(stair)
    dense = cost.evaluate(np.array([[6.0, 9.0, 5.0]])).at(0)
    limits = {"macs": share * dense["macs"] + 9, "latency_ms": 0.1 + share * dense["latency_ms"] + 0.5}
    problem = Problem(graph, random_scores(graph, seed, convex=convex), cost, limits)
    check(problem, search(name, problem))


@pytest.mark.parametrize("name", AUTOMATIC)
def test_nothing_goes_where_everything_fits(name: str) -> None:
    graph = chain(4, 4)
    found = search(name, Problem(graph, random_scores(graph, 0, convex=True), ChainCost(), {"macs": 1e9}))
    assert found.plan.removed == {}
    assert found.error == 0


@pytest.mark.parametrize("name", AUTOMATIC)
def test_an_unreachable_budget_says_what_is_reachable(name: str) -> None:
    graph = chain(4, 5)
    problem = Problem(graph, random_scores(graph, 0, convex=True), ChainCost(), {"macs": 5.0})
    with pytest.raises(BudgetError, match=r"macs of at most 5 was asked, the smallest reachable is 6, "
                       r"by a plan that keeps 1 of 4 in '0', 1 of 5 in '1'"):  # fmt: skip
        search(name, problem)


@pytest.mark.parametrize("name", AUTOMATIC)
def test_cells_lose_equally_many(name: str) -> None:
    graph = grouped()
    rng = np.random.default_rng(0)
    scores = from_importance("test", graph, {group.name: rng.random(group.size) for group in graph.groups})
    for sparsity in (0.0, 0.3, 0.5, 0.6):
        found = search(name, Problem(graph, scores, sparsity=sparsity))
        for group, kept in zip(graph.groups, found.counts, strict=True):
            stays = np.setdiff1d(np.arange(group.size), found.plan.removed.get(group.name, ()))
            per_cell = np.bincount(group.cells[stays], minlength=group.cell_count)
            assert (per_cell == kept // group.cell_count).all()
            assert kept >= group.cell_count


@pytest.mark.parametrize("name", AUTOMATIC)
@pytest.mark.parametrize("sparsity", [1.0, -0.1])
def test_sparsity_outside_its_range_is_refused(name: str, sparsity: float) -> None:
    graph = chain(4, 4)
    problem = Problem(graph, random_scores(graph, 0, convex=True), sparsity=sparsity)
    with pytest.raises(BudgetError, match=r"`sparsity` must be in \[0, 1\)"):
        search(name, problem)


@pytest.mark.parametrize("name", AUTOMATIC)
def test_rules_hold(name: str) -> None:
    graph, cost = chain(16, 16, 16), ChainCost()
    rules = Rules(protect=("0",), at_least={"1": 6}, multiple_of={"2": 4})
    problem = Problem(graph, random_scores(graph, 3, convex=True), cost, {"macs": 300.0}, rules=rules)
    found = search(name, problem)
    check(problem, found)
    assert found.counts[0] == 16
    assert found.counts[1] >= 6
    assert found.counts[2] % 4 == 0


@pytest.mark.parametrize("name", AUTOMATIC)
def test_a_cost_without_a_model_cannot_be_limited(name: str) -> None:
    graph = chain(4, 4)
    problem = Problem(graph, random_scores(graph, 0, convex=True), ChainCost(), {"energy_mj": 1.0})
    with pytest.raises(BudgetError, match="`energy_mj` cannot be limited: no model tells it"):
        search(name, problem)


def test_unknown_searches_list_close_names() -> None:
    graph = chain(4, 4)
    with pytest.raises(UserError, match=r"No search is called 'knapsac'. Did you mean 'knapsack'"):
        search("knapsac", Problem(graph, random_scores(graph, 0, convex=True)))


def test_units_can_be_limited_without_a_cost_model() -> None:
    graph = chain(6, 9, 5)
    scores = random_scores(graph, 1, convex=True)
    found = search("knapsack", Problem(graph, scores, limits={UNITS: 10}))
    marginal = np.sort(np.concatenate([scores.marginal(group.name)[:-1] for group in graph.groups]))
    assert found.counts.sum() == 10
    assert found.error == pytest.approx(marginal[:10].sum())


def test_global_ranking_removes_what_matters_least_anywhere() -> None:
    graph, cost = chain(6, 9, 5), ChainCost()
    scores = random_scores(graph, 2, convex=True)
    problem = Problem(graph, scores, cost, {"macs": 60.0})
    found = search("global", problem)
    kept = [scores.marginal(g.name)[g.size - c :] for g, c in zip(graph.groups, found.counts, strict=True)]
    gone = [scores.marginal(g.name)[: g.size - c] for g, c in zip(graph.groups, found.counts, strict=True)]
    # The last unit of each group has to stay, whatever it ranks.
    assert max(np.concatenate(gone)) <= min(np.concatenate([k[:-1] for k in kept]))
    assert best(problem) <= found.error


@pytest.mark.parametrize(
    ("sparsity", "counts"), [(0.0, [10, 8]), (0.3, [7, 6]), (0.5, [5, 4]), (0.99, [1, 1])]
)
def test_uniform_rounds_towards_keeping(sparsity: float, counts: list[int]) -> None:
    graph = chain(10, 8)
    problem = Problem(graph, random_scores(graph, 0, convex=True), sparsity=sparsity)
    assert search("uniform", problem).counts.tolist() == counts


def test_uniform_meets_a_budget_with_the_smallest_sparsity_that_does() -> None:
    graph, cost = chain(10, 8), ChainCost()
    problem = Problem(graph, random_scores(graph, 0, convex=True), cost, {"macs": 70.0})
    found = search("uniform", problem)
    steps = sorted({1 - k / n for n in (10, 8) for k in range(1, n + 1)})
    plans = [search("uniform", replace(problem, limits={}, sparsity=s)).counts for s in steps]
    fitting = [p for p in plans if cost.evaluate(p[None].astype(float)).macs[0] <= 70]
    assert found.counts.tolist() == fitting[0].tolist()
