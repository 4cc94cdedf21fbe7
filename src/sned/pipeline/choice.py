"""Which plan: the search, tightened by measured latencies, and the reasons in words."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sned.devices import Cost, FleetCost
from sned.errors import BudgetError
from sned.export import export_onnx
from sned.pipeline.asked import Evaluate, axis_of, default_search, shared_out_by
from sned.pipeline.loss import within_loss
from sned.pipeline.making import repaired_by
from sned.pipeline.study import Study, anchored, keep, measure, once, timed, unanswered
from sned.report.compose import Whole
from sned.saliency import CRITERIA, Evidence, Scores, criterion_named
from sned.search import Found, Problem, curve, remeasured, search
from sned.search.rules import listed
from sned.surgery.pytorch import pruned

ROUNDS = 4
"""How many plans are measured at most before the best of them is taken."""


NEAR, SURE = 0.93, 0.98
"""A measured latency between these shares of the one asked for is near enough, and keeps it when measured again."""


@dataclass(frozen=True)
class Choice:
    """A plan, the limits that led to it, and what was learnt on the way."""

    found: Found
    limits: dict[str, float]
    cost: Cost | FleetCost
    whole: Whole
    scores: Scores
    curve: tuple[Found, ...]
    notes: tuple[str, ...] = ()


def choose(study: Study, search_by: str | None, evaluate: Evaluate | None, base: float | None) -> Choice:
    """The plan of the least error within the budget.

    Args:
        study: what is known of the network.
        search_by: name of a search; None for the default.
        evaluate: the user's measure, for a budget with a loss.
        base: what it says of the whole network.
    """
    budget = study.budget
    with timed(study.seconds, "search"):
        study, limits, notes = anchored(study)
        name = search_by or default_search(budget, study.rules, study.scores.criterion)
        problem = _weighed(study, replace(study.problem, limits=limits, sparsity=budget.sparsity))
        points = curve(problem, axis_of(budget), search_by=shared_out_by(study.scores.criterion))
        found, said = _within(study, problem, name)
        if budget.max_loss is not None and evaluate is not None and base is not None:
            found, more = within_loss(study, problem, name, found, base, evaluate)
            said = (*said, *more)
        notes = (
            *unanswered(study.whole.graph),
            *_left_out(study),
            _ranked_by(study),
            *_labels_unused(study),
            _chosen_by(study, name, asked=search_by is not None),
            *_held_back(study, name),
            *notes,
            *said,
        )
        return Choice(found, limits, study.cost, study.whole, problem.scores, points, notes)


def _weighed(study: Study, problem: Problem) -> Problem:
    """The problem with each group's error weighed by what it does to the network's answers; left as it is where a
    criterion was asked for, or there are no real inputs."""
    if not study.weigh:
        return problem
    return remeasured(problem, Evidence(study.graph, study.state, study.calibration, progress=study.progress))


def _within(study: Study, problem: Problem, name: str) -> tuple[Found, tuple[str, ...]]:
    """The best plan within the limits; on a device that is here, a limited latency is measured."""
    if study.measured and "latency_ms" in problem.limits:
        return _within_latency(study, problem, name)
    found = search(name, problem)
    if found.changes or study.budget.max_loss is not None:
        return found, ()
    if problem.sparsity is not None or name == "manual":
        return found, ("What is asked for leaves no whole unit of any group to go, so nothing was removed.",)
    return found, ("The network keeps the budget as it is, so nothing was removed.",)


def _held_back(study: Study, name: str) -> tuple[str, ...]:
    """Which groups lose less than was asked of them, and why."""
    groups = study.rules.held_back(study.graph, study.budget.sparsity if name == "uniform" else None)
    return (f"Other rules hold back what `sparsity` asks for: {listed(groups)}.",) if groups else ()


def _within_latency(study: Study, problem: Problem, name: str) -> tuple[Found, tuple[str, ...]]:
    """Search, measure, and tighten or ease the predicted limit until the measured latency keeps the real one."""
    limits = dict(problem.limits)
    wanted = limits["latency_ms"]
    tried: list[tuple[float, Found]] = []
    for _ in range(ROUNDS):
        try:
            found = search(name, replace(problem, limits=limits))
        except BudgetError:
            if not tried:
                raise
            break
        if any((found.counts == other.counts).all() for _, other in tried):
            break
        share = _measured_share(study, found) / (wanted / study.dense_costs()["latency_ms"])
        tried.append((share, found))
        keep(study, _of_least_error(tried))
        if NEAR <= share <= SURE:
            break
        limits["latency_ms"] *= min(1.15, (SURE - 0.01) / share)
    found = _of_least_error(tried)
    share = next(share for share, other in tried if other is found)
    plans = "One plan was" if len(tried) == 1 else f"{len(tried)} plans were"
    said = f"{plans} measured; the chosen one takes {share:.2f} of the latency asked for."
    return found, (said,)


def _of_least_error(tried: Sequence[tuple[float, Found]]) -> Found:
    """Of measured plans (share of the latency asked for, plan) the best that surely keeps it, else the best that keeps
    it at all, else the fastest."""
    for most in (SURE, 1.0):
        if kept := [found for share, found in tried if share <= most]:
            return min(kept, key=lambda found: found.error)
    return min(tried, key=lambda pair: pair[0])[1]


def _measured_share(study: Study, found: Found) -> float:
    """Measured latency of a plan over that of the whole network, both in one interleaved run."""

    def measured() -> float:
        small = pruned(study.graph.model, study.graph, found.plan).model
        with tempfile.TemporaryDirectory() as folder:
            exported = export_onnx(small, study.example, Path(folder) / "round.onnx")
            timed = measure(study, exported)
        return timed["after"].median_ms / timed["before"].median_ms

    return once(study, "latency", measured, found.plan.to_json())


def _left_out(study: Study) -> tuple[str, ...]:
    """Which layers are gone altogether, and what that means for the figures."""
    names, told = ", ".join(study.graph.bypassed), study.shortened
    if not names:
        return ()
    repaired = "" if told is None else ", repaired towards yours"
    first = "" if told is None else f" {repaired_by(told)}"
    return (
        f"Left out: {names}.{first} Search, repair and trade-off curve then hold answers against the network "
        f"without them{repaired}; agreement, accuracy and all figures before are those of yours.",
    )


def _ranked_by(study: Study) -> str:
    """By which criterion units were ranked, and why by that."""
    name = study.scores.criterion
    if study.weigh:
        return (
            f"Units were ranked by '{name}', each group's error weighed by what it does to the answers: the default "
            "where there are calibration inputs."
        )
    if study.saliency is None:
        return f"Units were ranked by '{name}': the default, for want of calibration inputs, is their weights alone."
    random = study.calibration.synthetic and criterion_named(name).calibrated
    caution = (
        ", on random inputs, for want of real ones: pass `calibration` to rank them by real ones"
        if random
        else ""
    )
    return f"Units were ranked by '{name}', as asked{caution}."


def _labels_unused(study: Study) -> tuple[str, ...]:
    name = study.scores.criterion
    used = name in CRITERIA and CRITERIA[name].labelled
    return (
        (f"Labels were given and not looked at: '{name}' needs none.",)
        if study.labels is not None and not used
        else ()
    )


def _chosen_by(study: Study, name: str, *, asked: bool) -> str:
    """Which search said how much goes where, and why that one."""
    if asked:
        return f"How much goes where was chosen by '{name}', as asked."
    reason = {
        "uniform": "the default for a sparsity",
        "manual": "rules alone say how much goes",
        "global": "the default where importances rank units, and are no error that adds up",
    }.get(name, "the default for a budget: the least error within it")
    return f"How much goes where was chosen by '{name}', {reason}."
