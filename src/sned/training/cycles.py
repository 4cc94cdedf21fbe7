"""Prune and train in turns until little enough is left; and go back to early weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sned.errors import PlanError, UserError
from sned.graph import Graph, Plan
from sned.graph.example import Inputs
from sned.graph.trace import state_of
from sned.progress import SILENT, Progress
from sned.saliency import Evidence, score
from sned.search import Problem, Rules, search
from sned.surgery import trace
from sned.surgery.masks import hold_masks, masks_of
from sned.surgery.pytorch import PLAN_ATTRIBUTE, apply, pruned
from sned.training.finetune import Tuned, finetune
from sned.training.masking import cubic

Choose = Callable[[Graph, float], Plan]
"""From the graph of what there is, and the share in (0, 1) of the dense network that is to remain, to a plan."""


@dataclass(frozen=True, eq=False)
class Cycled:
    """What prune-and-train cycles made.

    Attributes:
        model: pruned and trained, carrying all plans.
        plans: one a cycle, each made for what the one before it left.
        tuned: how training went in each.
        remaining: share that was to remain after each.
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
    remaining: float,
    cycles: int = 4,
    choose: Choose | None = None,
    teacher: nn.Module | None = None,
    folder: str | Path | None = None,
    progress: Progress = SILENT,
    **training: Any,
) -> Cycled:
    """Remove a part, train, remove the next part from what was trained: ever less at a time, by the cubic schedule.

    After cycle `i` of `n` there remain `1 - (1 - remaining) (1 - (1 - i / n)³)`.

    Args:
        model: trained; it is not touched.
        example_inputs: as for `sned.trace`.
        data: as for `sned.finetune`.
        remaining: share that is to remain in the end, in (0, 1): of the units of every group, or of what `choose`
            counts.
        cycles: how often, at least 1; 1 is one shot.
        choose: which units go: from the graph of what there is, and the share of the dense network that is to remain,
            to a plan; by default the smallest by their L2 norm, the same share of every group.
        teacher: to learn from; the dense network is a good one.
        folder: of the checkpoints, one folder a cycle; the same call goes on from them.
        progress: shown while it runs.
        training: all else that `sned.finetune` takes, for every cycle alike.

    Raises:
        UserError: `remaining` or `cycles` is out of its range; and all that `sned.finetune` raises.

    Reference: Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015; the schedule is
        that of Zhu and Gupta, 2017, equation 1.

    Example:
        >>> made = prune_in_cycles(model, x, (images, labels), remaining=0.5, teacher=model, epochs=3)
    """
    if not 0 < remaining < 1:
        raise UserError(f"`remaining` must be in (0, 1), got {remaining!r}.")
    if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 1:
        raise UserError(f"`cycles` must be a whole number of at least 1, got {cycles!r}.")
    levels = [1 - (1 - remaining) * cubic((i + 1) / cycles) for i in range(cycles)]
    small, chosen = model, choose
    plans: list[Plan] = []
    tuned: list[Tuned] = []
    for number, level in enumerate(levels):
        graph = trace(small, example_inputs)
        chosen = chosen or smallest(graph)
        plan = chosen(graph, level)
        cut = pruned(small, graph, plan).model
        own = None if folder is None else Path(folder) / f"cycle-{number + 1}"
        result = finetune(cut, data, teacher=teacher, folder=own, progress=progress, **training)
        small = result.model
        plans.append(plan)
        tuned.append(result)
        if result.stopped == "interrupted":
            break
    return Cycled(small, tuple(plans), tuple(tuned), tuple(levels[: len(plans)]))


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
    result = early if plans else copy.deepcopy(early)
    for plan in plans:
        result = apply(result, plan)
    hold_masks(result, masks)
    return result
