"""Tiny problems of which every plan can be looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from sned.devices.cost import Costs, LayerCost
from sned.graph.ir import Graph
from sned.graph.trace import trace
from sned.saliency import Scores
from sned.saliency.scores import FloatArray
from sned.search import Found, Problem

INPUTS, OUTPUTS = 3, 2


@cache
def chain(*widths: int) -> Graph:
    """The graph of a multi-layer perceptron with hidden layers of these widths, a group each."""
    sizes = [INPUTS, *widths, OUTPUTS]
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return trace(nn.Sequential(*layers), torch.zeros(2, INPUTS))


@cache
def grouped() -> Graph:
    """A convolution in two groups between two plain ones: cells."""
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)]
    return trace(nn.Sequential(*layers), torch.zeros(2, 3, 2, 2))


@dataclass(frozen=True)
class ChainCost:
    """Costs of `chain`, written out: products of neighbouring widths; a latency with stairs."""

    stair: int = 1

    def evaluate(self, counts: FloatArray, of: object = None) -> Costs:
        """See `CostModel`."""
        plans = np.atleast_2d(counts)
        ends = np.ones((len(plans), 1))
        widths = np.concatenate([INPUTS * ends, plans, OUTPUTS * ends], axis=1)
        macs = (widths[:, :-1] * widths[:, 1:]).sum(axis=1)
        tiles = np.ceil(widths / self.stair) * self.stair
        nothing = np.full(len(plans), np.nan)
        return Costs(
            latency_ms=0.1 + (tiles[:, :-1] * tiles[:, 1:]).sum(axis=1) / 100,
            macs=macs,
            parameters=macs + widths[:, 1:].sum(axis=1),
            size_bytes=4 * macs,
            energy_mj=nothing,
            peak_memory_bytes=nothing,
        )

    @property
    def capacity(self) -> dict[str, float]:
        return {}

    def layers(self, counts: FloatArray) -> list[LayerCost]:
        """Not asked for by searches."""
        raise NotImplementedError(counts)


def scores(graph: Graph, curves: Sequence[Sequence[float]]) -> Scores:
    """Scores whose units go in the order of their numbers, at these steps of error."""
    names = [group.name for group in graph.groups]
    order = {group.name: np.arange(group.size) for group in graph.groups}
    error = {n: np.concatenate([[0.0], np.cumsum(steps)]) for n, steps in zip(names, curves, strict=True)}
    return Scores("test", order, error)


def random_scores(graph: Graph, seed: int, *, convex: bool) -> Scores:
    """Random curves; convex ones as optimal brain surgery gives them, or with steps of any size."""
    rng = np.random.default_rng(seed)
    steps = [rng.random(group.size) ** 3 * rng.choice([0.1, 1.0, 10.0]) for group in graph.groups]
    return scores(graph, [np.sort(s) if convex else s for s in steps])


def everything(problem: Problem) -> Iterator[tuple[FloatArray, float]]:
    """Costs `[limits]` and error of every plan that there is."""
    ladders = problem.rules.choices(problem.graph)
    plans = np.array(list(itertools.product(*ladders)), np.float64)
    assert problem.cost is not None
    costs = vars(problem.cost.evaluate(plans))
    columns = np.stack([costs[name] for name in problem.limits], axis=1)
    for plan, cost in zip(plans, columns, strict=True):
        lost = zip(problem.graph.groups, plan, strict=True)
        yield cost, sum(problem.scores.error[g.name][g.size - int(kept)] for g, kept in lost)


def best(problem: Problem) -> float:
    """The least error within the limits, by looking at every plan."""
    bounds = np.array(list(problem.limits.values()))
    return min(error for cost, error in everything(problem) if (cost <= bounds).all())


def check(problem: Problem, found: Found) -> None:
    """Raise where a result breaks a limit, or does not say what its plan does."""
    graph = problem.graph
    assert np.array_equal(found.plan.counts(graph), found.counts)
    if problem.cost is not None:
        costs = problem.cost.evaluate(found.counts[None].astype(float)).at(0)
        assert found.costs == costs
        for name, limit in problem.limits.items():
            assert costs[name] <= limit * (1 + 1e-9)
    error = sum(
        problem.scores.error[g.name][g.size - kept]
        for g, kept in zip(graph.groups, found.counts, strict=True)
    )
    assert np.isclose(found.error, error)
    for group, ladder, kept in zip(graph.groups, problem.rules.choices(graph), found.counts, strict=True):
        assert kept in ladder
        gone = found.plan.removed.get(group.name, ())
        assert sorted(gone) == sorted(problem.scores.order[group.name][: group.size - kept])
