"""What a search chooses from: for every group a ladder of counts, with the error of each rung and what plans
cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sned.devices.budget import ON
from sned.devices.cost import STORES
from sned.errors import BudgetError
from sned.graph.ir import Graph, Group, IntArray
from sned.graph.plan import Plan
from sned.saliency.scores import FloatArray, Scores, least_important
from sned.search.rules import Rules

if TYPE_CHECKING:
    from sned.devices.cost import CostModel

UNITS = "units"
"""A limit on how many units stay in all, beside those that the cost model knows."""

SLACK = 1e-9
"""Relative; a limit of exactly half is met by exactly half, whatever the rounding."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched for: the plan of least error within the limits.

    Attributes:
        graph: the network's structure.
        scores: of its groups.
        cost: what plans cost; None will do where nothing but `units` or `sparsity` is limited.
        limits: `{name of a field of Costs, or "units": largest value allowed}`.
        sparsity: fraction of units to remove in [0, 1), instead of limits: in each group for `uniform`, else
            overall.
        rules: what the user says of single groups.
    """

    graph: Graph
    scores: Scores
    cost: CostModel | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    sparsity: float | None = None
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, eq=False)
class Found:
    """A plan that a search chose.

    Attributes:
        search: the name of the search.
        plan: what goes.
        counts: int64 `[groups]`, units kept.
        costs: everything the cost model tells of the whole plan.
        error: sum of the groups' errors, in the unit of the scores.
    """

    search: str
    plan: Plan
    counts: IntArray
    costs: Mapping[str, float]
    error: float

    @property
    def changes(self) -> bool:
        """Whether the plan takes anything away."""
        return bool(self.plan.removed or self.plan.bypassed)


MISSED_SHOWN = 3
"""Limits that an error names, those that are missed most first."""


class Space:
    """The ladders of a problem. A choice is `levels`, int64 `[groups]` or `[P, groups]`; 0 keeps the most
    units."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        graph, scores = problem.graph, problem.scores
        self.groups = graph.groups
        ladders = problem.rules.choices(graph)
        self.tops: IntArray = np.array([len(ladder) - 1 for ladder in ladders], np.int64)
        width = int(self.tops.max(initial=0)) + 1
        # Rows are padded with their last rung; a level beyond `tops` never occurs.
        self.kept: IntArray = np.array(
            [np.pad(ladder, (0, width - len(ladder)), "edge") for ladder in ladders], np.int64
        )
        self.error: FloatArray = np.array(
            [
                scores.error[group.name][group.size - row]
                for group, row in zip(graph.groups, self.kept, strict=True)
            ]
        )
        self.limits = {**problem.limits, **self._sparsity_limit()}
        self.bounds: FloatArray = np.array(list(self.limits.values()), np.float64)

    def _sparsity_limit(self) -> dict[str, float]:
        sparsity = self.problem.sparsity
        if sparsity is None:
            return {}
        if not 0 <= sparsity < 1:
            raise BudgetError(f"`sparsity` must be in [0, 1), got {sparsity:g}.")
        return {UNITS: (1 - sparsity) * sum(group.size for group in self.groups)}

    @cached_property
    def rows(self) -> IntArray:
        """`[groups]`: 0, 1, 2 …, to index the ladders with."""
        return np.arange(len(self.groups))

    @property
    def dense(self) -> IntArray:
        """The levels that keep the most."""
        return np.zeros(len(self.groups), np.int64)

    def bounded(self, bounds: FloatArray) -> Space:
        """The same space with other bounds `[limits]`."""
        other = copy.copy(self)
        other.bounds = bounds
        other.limits = dict(zip(self.limits, bounds.tolist(), strict=True))
        return other

    def counts(self, levels: IntArray) -> IntArray:
        """Units kept, in the shape of `levels`."""
        return self.kept[self.rows, levels]

    def errors(self, levels: IntArray) -> FloatArray:
        """Sum of the groups' errors: `[P]` of `[P, groups]`."""
        return np.asarray(self.error[self.rows, levels].sum(axis=-1))

    def costs(self, levels: IntArray) -> FloatArray:
        """`[P, limits]` of `levels` `[P, groups]`: what is limited, in the order of `limits`."""
        counts = self.counts(levels).astype(np.float64)
        columns = {UNITS: counts.sum(axis=1)}
        if self.problem.cost is not None and (told := set(self.limits) - {UNITS}):
            columns |= self.problem.cost.evaluate(counts, told).columns()
        for name in self.limits:
            if name not in columns or not np.isfinite(columns[name]).all():
                raise BudgetError(f"`{name}` cannot be limited: no model tells it for this device.")
        return (
            np.stack([columns[name] for name in self.limits], axis=1)
            if self.limits
            else np.zeros((len(levels), 0))
        )

    def fits(self, costs: FloatArray) -> NDArray[np.bool_]:
        """`[P]`: which of `costs` `[P, limits]` are within all limits."""
        return np.asarray((costs <= self.bounds * (1 + SLACK)).all(axis=1))

    def finish(self, search: str, levels: IntArray) -> Found:
        """The plan of a choice, checked once more against the true cost of the whole.

        Raises:
            BudgetError: it does not keep the limits after all.
        """
        if not self.fits(self.costs(levels[None]))[0]:
            raise self.unreachable(levels)
        counts = self.counts(levels)
        order = self.problem.scores.order
        removed = {
            group.name: least_important(group, order[group.name], group.size - int(kept)).tolist()
            for group, kept in zip(self.groups, counts, strict=True)
        }
        cost = self.problem.cost
        told = cost.evaluate(counts[None].astype(np.float64)).at(0) if cost is not None else {}
        return Found(
            search, self.problem.graph.plan(removed), counts, told, float(self.errors(levels[None])[0])
        )

    def unreachable(self, levels: IntArray) -> BudgetError:
        """Say that the limits cannot be met, and that `levels` is as near as it gets."""
        costs = dict(zip(self.limits, self.costs(levels[None])[0], strict=True))
        full = [name for name in self.capacity if costs[name] > self.limits[name] * (1 + SLACK)]
        advice = (
            f"Only so much fits into the {STORES[full[0]]} of the device: give the network a smaller input, choose "
            "another device, or protect less."
            if full
            else "Ask for more than that, or protect less."
        )
        return BudgetError(
            f"The budget lies below what is reachable: {self.missed(levels, 'the smallest reachable is')}. {advice}"
        )

    @property
    def capacity(self) -> Mapping[str, float]:
        """Those of the limits that are the device's own: nobody asked for less."""
        held = {} if self.problem.cost is None else self.problem.cost.capacity
        return {name: most for name, most in held.items() if self.problem.limits.get(name) == most}

    def missed(self, levels: IntArray, reached: str) -> str:
        """The limits that a choice does not keep, what it reaches, and what it keeps, in words."""
        costs = self.costs(levels[None])[0]
        missed = sorted(
            (
                bound / cost,
                f"{_place(name)} of at most {amount(bound)} {self._whose(name)}, {reached} {amount(cost)}",
            )
            for (name, bound), cost in zip(self.limits.items(), costs, strict=True)
            if cost > bound * (1 + SLACK)
        )
        worst = "; ".join(text for _, text in missed[:MISSED_SHOWN])
        more = f"; and {len(missed) - MISSED_SHOWN} more" if len(missed) > MISSED_SHOWN else ""
        return f"{worst}{more}, by a plan that keeps {summary(self.groups, self.counts(levels))}"

    def _whose(self, name: str) -> str:
        return f"fits into the {STORES[name]} of the device" if name in self.capacity else "was asked"


def _place(name: str) -> str:
    """ "latency_ms@pixel-9" in words."""
    cost, on, device = name.partition(ON)
    return f"{cost} on '{device}'" if on else cost


def amount(value: float) -> str:
    """A figure as a reader likes it: whole numbers in full, others to four digits."""
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:.4g}"


def summary(groups: Sequence[Group], counts: IntArray, *, limit: int = 6) -> str:
    """What a plan keeps: `2 of 16 in 'conv1', …`."""
    said = [
        f"{int(kept)} of {group.size} in {group.name!r}" for group, kept in zip(groups, counts, strict=True)
    ]
    more = f", … ({len(said)} groups)" if len(said) > limit else ""
    return ", ".join(said[:limit]) + more
