"""Prune and train in turns until little enough is left; and go back to early weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sned.devices import Budget, cost_for, limits_for
from sned.errors import BudgetError, PlanError, UserError
from sned.graph import Graph, Plan
from sned.graph.example import Inputs
from sned.graph.trace import state_of
from sned.progress import SILENT, Progress
from sned.saliency import Evidence, score
from sned.search import Problem, Rules, search
from sned.surgery import trace
from sned.surgery.masks import hold_masks, masks_of
from sned.surgery.pytorch import PLAN_ATTRIBUTE, apply, pruned
from sned.surgery.twin import copied
from sned.training.finetune import Tuned, finetune
from sned.training.masking import cubic
from sned.training.parts import Part

Choose = Callable[[Graph, float], Plan]
"""From the graph of what there is, and the share in (0, 1) of the dense network that is to remain, to a plan."""


@dataclass(frozen=True, eq=False)
class Cycled:
    """What prune-and-train cycles made.

    Attributes:
        model: pruned and trained, carrying all plans.
        plans: one a cycle, each made for what the one before it left.
        tuned: how training went in each.
        remaining: share that was to remain after each: of units, or of the tightest amount of the budget.
    """

    model: nn.Module
    plans: tuple[Plan, ...] = field(repr=False)
    tuned: tuple[Tuned, ...] = field(repr=False)
    remaining: tuple[float, ...]


def prune_in_cycles(
    model: nn.Module,
    example_inputs: Inputs,
    data: Any,
    *,
    remaining: float | None = None,
    budget: Budget | None = None,
    cycles: int = 4,
    choose: Choose | None = None,
    parts: Sequence[Part] | Callable[[Graph], Sequence[Part]] = (),
    folder: str | Path | None = None,
    progress: Progress = SILENT,
    **training: Any,
) -> Cycled:
    """Remove a part, train, remove the next part from what was trained: ever less at a time, by the cubic schedule.

    After cycle `i` of `n` there remain `1 - (1 - remaining) (1 - (1 - i / n)³)`; of everything that a budget limits
    likewise, on the way from the dense network's cost to the limit.

    Args:
        model: trained; it is not touched.
        example_inputs: as for `sned.trace`.
        data: as for `sned.finetune`.
        remaining: share that is to remain in the end, in (0, 1): of the units of every group, or of what `choose`
            counts; or
        budget: what may remain in the end, such as `sned.Budget(macs="50%")`, spent where it costs least L2 norm.
        cycles: how often, at least 1; 1 is one shot.
        choose: which units go: from the graph of what there is, and the share of the dense network that is to remain,
            to a plan; by default the smallest by their L2 norm, the same share of every group. Not with a budget.
        parts: as for `sned.finetune`; those made for a graph, such as penalties on units, as a function from the graph
            of each cycle's network to them.
        folder: of the checkpoints, one folder a cycle; the same call goes on from them.
        progress: shown while it runs.
        training: all else that `sned.finetune` takes, for every cycle alike; the dense network is the `teacher` unless
            another is given, or None.

    Raises:
        UserError: `remaining` or `cycles` is out of its range, or there are both a budget and `remaining`, or neither;
            and all that `sned.finetune` raises.
        BudgetError: the budget cannot be reached, or is a `sparsity` or `max_loss`.

    Reference: Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015; the schedule is
        that of Zhu and Gupta, 2017, equation 1.

    Example:
        >>> made = prune_in_cycles(model, x, (images, labels), budget=sned.Budget(macs="50%"), epochs=3)
    """
    if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 1:
        raise UserError(f"`cycles` must be a whole number of at least 1, got {cycles!r}.")
    small, graph = model, trace(model, example_inputs)
    way = _way(graph, remaining, budget, choose)
    levels = [1 - (1 - way.remaining) * cubic((i + 1) / cycles) for i in range(cycles)]
    plans: list[Plan] = []
    tuned: list[Tuned] = []
    for number, level in enumerate(levels):
        if number:
            graph = trace(small, example_inputs)
        plan = way.choose(graph, level)
        cut = pruned(small, graph, plan).model
        own = None if folder is None else Path(folder) / f"cycle-{number + 1}"
        acting = parts(trace(cut, example_inputs)) if callable(parts) else parts
        given = {"teacher": model, **training}
        result = finetune(cut, data, parts=acting, folder=own, progress=progress, **given)
        small = result.model
        plans.append(plan)
        tuned.append(result)
        if result.stopped == "interrupted":
            break
    return Cycled(small, tuple(plans), tuple(tuned), tuple(levels[: len(plans)]))


@dataclass(frozen=True)
class _Way:
    """How a network becomes small: what remains in the end, and which units go until a share of it is left."""

    remaining: float
    choose: Choose


def _way(dense: Graph, remaining: float | None, budget: Budget | None, choose: Choose | None) -> _Way:
    if (remaining is None) == (budget is None):
        raise UserError("Give either `remaining`, a share in (0, 1), or a `budget`.")
    if budget is not None:
        if choose is not None:
            raise UserError("`choose` takes a share that is to remain: give `remaining`, not a `budget`.")
        return _within(dense, budget)
    if remaining is None or not 0 < remaining < 1:
        raise UserError(f"`remaining` must be in (0, 1), got {remaining!r}.")
    return _Way(remaining, choose or smallest(dense))


def _within(dense: Graph, budget: Budget) -> _Way:
    """Plans within a budget, all units in one ranking by their L2 norm; what remains is told in the tightest amount.

    Raises:
        BudgetError: it limits no amount, or nothing needs to go.
    """
    if not budget.amounts or budget.max_loss is not None:
        raise BudgetError(
            "Cycles go to a budget of amounts, such as Budget(macs='50%'); for a sparsity use `remaining`."
        )
    cost = cost_for(dense, budget)
    whole = cost.evaluate(np.array([[group.size for group in dense.groups]], np.float64)).at(0)
    limits = limits_for(budget, cost, whole)
    shares = {
        name: most / whole[name] for name, most in limits.items() if name.partition("@")[0] in budget.amounts
    }
    tightest = min(shares, key=lambda name: shares[name])
    remaining = shares[tightest]
    if remaining >= 1:
        raise BudgetError(
            f"A budget must be less than what there is, but `{tightest}` may be {limits[tightest]:.4g} and is "
            f"{whole[tightest]:.4g}."
        )

    def choose(graph: Graph, level: float) -> Plan:
        done = (1 - level) / (1 - remaining)
        now = {name: max(most, whole[name] - done * (whole[name] - most)) for name, most in limits.items()}
        scores = score("l2", Evidence(graph, state_of(graph.model)))
        return search("global", Problem(graph, scores, cost=cost_for(graph, budget), limits=now)).plan

    return _Way(remaining, choose)


def smallest(dense: Graph) -> Choose:
    """Plans that leave a share of every group's units in the dense network, the largest by their L2 norm."""
    sizes = {group.name: group.size for group in dense.groups}

    def choose(graph: Graph, remaining: float) -> Plan:
        shares = {g.name: max(1 - remaining * sizes.get(g.name, g.size) / g.size, 0.0) for g in graph.groups}
        scores = score("l2", Evidence(graph, state_of(graph.model)))
        return search("uniform", Problem(graph, scores, sparsity=0.0, rules=Rules(sparsity=shares))).plan

    return choose


def rewound(small: nn.Module, early: nn.Module) -> nn.Module:
    """The pruned network with the weights that it had early in training: to be trained again from there.

    Args:
        small: carries its plans; its masks are held in what is returned. It is not touched.
        early: the dense network early in training. It is not touched.

    Raises:
        PlanError: `small` carries neither plan nor masks, or `early` is not the network that its plans were made for.

    Reference: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020; Renda et al.,
        Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020. Learning-rate rewinding is `sned.finetune`
        with the rate that the network was first trained with.
    """
    plans: tuple[Plan, ...] = getattr(small, PLAN_ATTRIBUTE, ())
    masks = masks_of(small)
    if not plans and not masks:
        raise PlanError(
            "Rewinding needs a network that was pruned, but this one carries no plan and no masks."
        )
    result = early if plans else copied(early)
    for plan in plans:
        result = apply(result, plan)
    hold_masks(result, masks)
    return result
