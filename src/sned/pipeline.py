"""The short road: a model, an example and a budget go in; a smaller model that keeps the budget comes out, with proof.

The only module that sees all stages, and the only one that loops back: a measured latency that misses its budget
tightens the search.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sned.calibration import Calibration, Resume, calibrate
from sned.devices import Budget, Cost, FleetCost, cost_for, find_devices, limits_for
from sned.errors import BudgetError, CalibrationError, ModelError, UserError
from sned.export import Exported, export_onnx, feeds
from sned.files import atomic_write_text
from sned.graph import Graph, Plan
from sned.graph.example import Inputs
from sned.graph.trace import state_of
from sned.measure import Latency, agreement, evaluated, measure_onnx
from sned.progress import SILENT, Progress
from sned.repair import RepairReport, glance, match, repair
from sned.report import Report, to_html, to_json
from sned.report.compose import Findings, Network, Whole, compose
from sned.saliency import CRITERIA, Evidence, Scores, criterion_named, score, sensitivities, weighed
from sned.search import Found, Problem, Rules, curve, remeasured, search, search_named
from sned.search.space import amount
from sned.surgery import save, trace
from sned.surgery import without as leave_out
from sned.surgery.keras import is_keras
from sned.surgery.pytorch import Pruned, fill, pruned
from sned.timing import processor_clock
from sned.training import finetune as train

ROUNDS = 4
"""How many plans are measured at most before the best of them is taken."""

NEAR = 0.94
"""A measured latency between this share of the one asked for and the whole of it is near enough."""

STEPS = 6
"""Networks that are evaluated at most to find the smallest within a loss, beside the largest."""

SMALLEST = 0.05
"""Share of a cost at which the search within a loss starts."""

ROUNDING = 1e-9
"""Of a loss."""

RULES_ALONE = Budget(macs="100%")
"""What is asked where rules or layers alone say what goes: nothing may get larger."""

INPUTS = 1024
"""Calibration inputs read at most."""

SYNTHETIC = 64
"""Random inputs where there are no real ones: they only serve to compare answers."""

RESUME = ".resume"
"""Folder inside `out` for what an interrupted run had learnt; gone when a run is complete."""

Evaluate = Callable[[Any], float]


@dataclass(frozen=True)
class Result:
    """What `prune` returns: the smaller network, the plan that made it, and the report of the run."""

    model: Any
    plan: Plan
    report: Report


@dataclass(frozen=True)
class Study:
    """All that is known about a network before anything is removed.

    Where layers are left out, `graph`, `state`, `calibration`, `scores` and `cost` are of the network without them, and
    `model`, `exported` and `whole` of the user's own.
    """

    model: nn.Module
    example: Inputs
    graph: Graph
    state: Mapping[str, torch.Tensor]
    calibration: Calibration
    scores: Scores
    cost: Cost | FleetCost
    whole: Whole
    budget: Budget
    rules: Rules
    folder: Path
    exported: Exported
    progress: Progress
    weigh: bool
    asked_for_saliency: bool
    labelled: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """The search problem without limits."""
        return Problem(self.graph, self.scores, self.cost, rules=self.rules)

    @property
    def measured(self) -> bool:
        """Whether networks can be timed on the device from here."""
        return self.cost.basis == "measured"

    def dense_costs(self) -> dict[str, float]:
        """Predicted costs of the user's own network."""
        return self.whole.costs()

    def anchored(self, latency_ms: float | None, size_bytes: float | None) -> Study:
        """The same, its cost models scaled to what was measured of the user's own network."""
        whole = self.whole.anchored(latency_ms, size_bytes)
        return replace(self, whole=whole, cost=self.cost.anchored_like(whole.cost))


def plan(
    graph: Graph,
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    saliency: str | None = None,
    search_by: str | None = None,
    rules: Rules | Mapping[str, Any] | str | Path | None = None,
    calibration: Iterable[Any] | None = None,
    labels: torch.Tensor | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """Choose which units go; nothing is changed yet.

    Args:
        graph: what `sned.trace` made.
        sparsity: fraction of the units of each group to remove, in [0, 1); or
        budget: what may remain (MACs, parameters, predicted latency …); or neither, where the rules give groups a
            sparsity.
        saliency: which units matter: a name in `sned.saliency.CRITERIA`; by default "l2", or, with calibration
            inputs, "reconstruction".
        search_by: how much goes where: a name in `sned.search.SEARCHES`; by default "uniform" for a sparsity,
            "manual" for rules alone, else "knapsack".
        rules: what must be respected: `Rules`, a dict of patterns such as `{"protect": ["stem.*"]}`, or the path of a
            TOML file with the same fields.
        calibration: batches of inputs, for criteria that look at activations.
        labels: int64 `[n]`, classes of the calibration inputs in their order, for criteria that take a loss ("taylor",
            "fisher", "snip", "grasp"); without them those use the network's own answers.
        progress: shown while it runs.

    Returns:
        The `Plan`, for `sned.apply`.

    Raises:
        BudgetError: neither or both of `sparsity` and `budget`, or the budget cannot be reached.
        PlanError: the rules name what is not there, or contradict each other.

    Example:
        >>> plan = sned.plan(sned.trace(model, x), sparsity=0.5)
    """
    _check_names(saliency, search_by)
    respected = _rules(rules)
    asked = _one_of(sparsity, budget, respected)
    if asked.max_loss is not None:
        raise BudgetError(
            "`max_loss` takes networks that are pruned, repaired and evaluated: use `sned.prune` for it."
        )
    if is_keras(graph.model):
        from sned.surgery.keras.road import calibration_of

        graph.model.pull()
        calibration = calibration_of(calibration, *graph.example.args)
    state = state_of(graph.model)
    learnt = calibrate(graph, state, calibration, progress=progress) if calibration is not None else None
    scores = _scores(Evidence(graph, state, learnt, _checked(labels, learnt), progress=progress), saliency)
    problem = Problem(graph, scores, rules=respected, sparsity=asked.sparsity)
    if asked.amounts:
        cost = cost_for(graph, asked, progress=progress)
        dense = cost.evaluate(np.array([[group.size for group in graph.groups]], np.float64)).at(0)
        problem = replace(problem, cost=cost, limits=limits_for(asked, cost, dense))
    return search(search_by or _default_search(asked, respected), problem).plan


def prune(
    model: Any,
    example_inputs: Inputs,
    *,
    budget: Budget | None = None,
    calibration: Iterable[Any] | None = None,
    labels: torch.Tensor | None = None,
    evaluate: Evaluate | None = None,
    saliency: str | None = None,
    search_by: str | None = None,
    rules: Rules | Mapping[str, Any] | str | Path | None = None,
    without: Sequence[str] | str = (),
    match_seconds: float | None = None,
    finetune: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Cut a trained network down to a budget, repair it without training (train it, where asked), and prove what was
    gained.

    Args:
        model: any trained `nn.Module`, or a Keras 3 model on any backend; it is not touched.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; for a Keras model what
            `model.predict` takes.
        budget: what may remain, and on which device; None where rules or `without` alone say what goes.
        calibration: batches of inputs as the model takes them, a few hundred, without labels. Without them units are
            chosen by their weights, and nothing is repaired. For a Keras model also an array, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`, whose labels are left aside.
        labels: int64 `[n]`, classes of the calibration inputs in their order, for criteria that take a loss ("taylor",
            "fisher", "snip", "grasp"); nothing else needs any.
        evaluate: how good a model is, a number, higher is better. Used to report; and to choose only where
            `budget.max_loss` asks for it, so give validation data then, not the test set.
        saliency: which units matter; by default from calibration inputs where there are any.
        search_by: how much goes where; by default "uniform" for a sparsity, "manual" for rules alone, else
            "knapsack".
        rules: groups to protect, counts to keep to: `sned.search.Rules`, a dict with its fields, or a TOML file of it.
        without: layers and residual branches to leave out altogether, by their names in `graph.layers`.
        match_seconds: time to spend, after repair, on gradient steps towards the dense network's answers and features
            on the calibration inputs; no labels are needed. None for no such steps.
        finetune: what `sned.finetune` takes, `data` among it: the repaired network is trained so, by default with the
            dense one as its teacher (`"teacher": None` for none).
        out: a folder for the model, the plan, the ONNX files and the report. A run that was interrupted is resumed
            there: what it had learnt is kept in `.resume` until a run is complete, and used where model, inputs and
            versions are the same. The best plan so far is kept too, and the checkpoint of training.
        progress: shown while it runs.

    Returns:
        The pruned model (of the class of `model`), its plan and the report.

    Raises:
        ModelError: the model does not run on the example, holds NaN weights, or nothing in it can go.
        BudgetError: the budget is below what is reachable (says the smallest reachable), or contradicts itself.
        PlanError: rules or `without` name what is not there, or rules contradict each other.
        CalibrationError: the calibration inputs are not what the model takes.
        SurgeryError, ExportError: the result does not compute what it must; nothing is handed over.
        UserError, TrainingError: what `sned.finetune` raises.

    Example:
        >>> result = sned.prune(model, x, budget=sned.Budget(latency_ms="50%"), calibration=batches)
        >>> result.model, result.report
    """
    if match_seconds is not None and not match_seconds > 0:
        raise BudgetError(f"`match_seconds` is a time, more than 0 seconds, got {match_seconds}.")
    _check_names(saliency, search_by)
    respected = _rules(rules)
    without = (without,) if isinstance(without, str) else tuple(without)
    asked = RULES_ALONE if budget is None and without else _one_of(None, budget, respected)
    if asked.max_loss is not None and evaluate is None:
        raise BudgetError("`max_loss` is measured by `evaluate`: pass a function from a model to a number.")
    if finetune is not None and "data" not in finetune:
        raise UserError(
            "`finetune` must hold what `sned.finetune` takes, `data` at least: {'data': loader, 'epochs': 10}."
        )
    if is_keras(model):
        from sned.surgery.keras.road import calibration_of, evaluate_of, inputs_of, network_for

        if finetune is not None:
            raise UserError(
                "A Keras model is trained by its own `fit`: prune it without `finetune`, and give the result to "
                "`sned.keras.Distiller`, with the original as its teacher."
            )
        model, evaluate = network_for(model, example_inputs), evaluate_of(evaluate)
        example_inputs = inputs_of(example_inputs)
        calibration = calibration_of(calibration, *example_inputs)
    with _folder(out) as folder:
        resume = Resume(None if out is None else folder / RESUME)
        study = _study(
            model,
            example_inputs,
            asked,
            calibration,
            labels,
            saliency,
            respected,
            without,
            folder,
            progress,
            resume,
        )
        base = evaluated(model, evaluate) if evaluate else None
        chosen = _choose(study, search_by, evaluate, base)
        result = _finish(study, chosen, evaluate, base, match_seconds, finetune, keep=out is not None)
        resume.clear()
        return result


# --- before anything is removed --------------------------------------------------------------------------------------


def _study(
    model: nn.Module,
    example: Inputs,
    budget: Budget,
    batches: Iterable[Any] | None,
    labels: torch.Tensor | None,
    saliency: str | None,
    rules: Rules,
    without: Sequence[str],
    folder: Path,
    progress: Progress,
    resume: Resume,
) -> Study:
    seconds: dict[str, float] = {}
    find_devices(budget.device)  # a wrong name is found before anything else
    _check_weights(model)
    with _timed(seconds, "trace"):
        dense = trace(model, example)
        graph = leave_out(dense, without) if without else dense
    _check_groups(graph)
    rules.choices(graph)  # a wrong name is found before anything is measured
    state = state_of(graph.model)
    with _timed(seconds, "calibrate"):
        limit = SYNTHETIC if batches is None else INPUTS
        learnt = calibrate(graph, state, batches, limit=limit, progress=progress, resume=resume)
    with _timed(seconds, "score"):
        known = _checked(labels, learnt)
        scores = _scores(Evidence(graph, state, learnt, known, progress=progress), saliency)
    with _timed(seconds, "cost model"):
        costs = [
            cost_for(each, budget, progress=progress) for each in ([dense, graph] if without else [dense])
        ]
    with _timed(seconds, "export"):
        exported = export_onnx(model, example, folder / "dense.onnx")
    weigh = saliency is None and not learnt.synthetic
    return Study(
        model,
        example,
        graph,
        state,
        learnt,
        scores,
        costs[-1],
        Whole(dense, costs[0]),
        budget,
        rules,
        folder,
        exported,
        progress,
        weigh,
        saliency is not None,
        labels is not None,
        seconds,
    )


def _check_weights(model: nn.Module) -> None:
    for name, tensor in state_of(model).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"Weights must be finite numbers, but {name!r} holds NaN or infinity. "
                "Load a checkpoint from before the training diverged."
            )


def _check_groups(graph: Graph) -> None:
    if not graph.groups:
        reasons = (
            "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3]) or "it has no weights in its path"
        )
        raise ModelError(
            f"Nothing in this network can be removed ({reasons}). `sned inspect` shows every reason."
        )


def _scores(evidence: Evidence, saliency: str | None) -> Scores:
    """The criterion asked for; else the one that knows most of what there is, weighed by what the network answers."""
    if saliency is not None:
        return score(saliency, evidence)
    if evidence.calibration is None or evidence.calibration.synthetic:
        return score("l2", evidence)
    return score("reconstruction", evidence)


def _weighed(study: Study, problem: Problem) -> Problem:
    """The problem with each group's error weighed by what it does to the network's answers, around smaller and smaller
    networks on the way to the limits; left as it is where a criterion was asked for, or there are no real inputs."""
    if not study.weigh:
        return problem
    evidence = Evidence(study.graph, study.state, study.calibration, progress=study.progress)
    if problem.limits or problem.sparsity is not None:
        return remeasured(problem, evidence)
    return replace(problem, scores=weighed(problem.scores, sensitivities(evidence, problem.scores)))


# --- which plan ------------------------------------------------------------------------------------------------------


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


def _choose(study: Study, search_by: str | None, evaluate: Evaluate | None, base: float | None) -> Choice:
    budget = study.budget
    with _timed(study.seconds, "search"):
        study, limits, notes = _anchored(study)
        name = search_by or _default_search(budget, study.rules)
        problem = _weighed(study, replace(study.problem, limits=limits, sparsity=budget.sparsity))
        points = curve(problem, _axis_of(budget), points=10)
        found, said = _within(study, problem, name)
        if budget.max_loss is not None and evaluate is not None and base is not None:
            found, more = _within_loss(study, problem, name, found, base, evaluate)
            said = (*said, *more)
        notes = (
            *_left_out(study),
            _ranked_by(study),
            *_labels_unused(study),
            _chosen_by(study, name, asked=search_by is not None),
            *notes,
            *said,
        )
        return Choice(found, limits, study.cost, study.whole, problem.scores, points, notes)


def _left_out(study: Study) -> tuple[str, ...]:
    """Which layers are gone altogether, and what that means for the figures."""
    names = ", ".join(study.graph.bypassed)
    note = (
        f"Left out, as asked: {names}. Search, repair and trade-off curve hold answers against the network without "
        "them; agreement, accuracy and all figures before are those of yours."
    )
    return (note,) if names else ()


def _ranked_by(study: Study) -> str:
    """By which criterion units were ranked, and why by that."""
    name = study.scores.criterion
    if study.weigh:
        return (
            f"Units were ranked by '{name}', each group's error weighed by what it does to the answers: the default "
            "where there are calibration inputs."
        )
    if not study.asked_for_saliency:
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
        (f"Labels were given and not looked at: '{name}' needs none.",) if study.labelled and not used else ()
    )


def _chosen_by(study: Study, name: str, *, asked: bool) -> str:
    """Which search said how much goes where, and why that one."""
    if asked:
        return f"How much goes where was chosen by '{name}', as asked."
    reason = {
        "uniform": "the default for a sparsity",
        "manual": "rules alone say how much goes",
    }.get(name, "the default for a budget: the least error within it")
    return f"How much goes where was chosen by '{name}', {reason}."


def _within(study: Study, problem: Problem, name: str) -> tuple[Found, tuple[str, ...]]:
    """The best plan within the limits; what limits latency is measured."""
    if "latency_ms" in problem.limits:
        return _within_latency(study, problem, name)
    found = search(name, problem)
    whole = not _changes(found) and study.budget.max_loss is None
    return found, ("The network keeps the budget as it is, so nothing was removed.",) if whole else ()


def _changes(found: Found) -> bool:
    """Whether a plan takes anything away."""
    return bool(found.plan.removed or found.plan.bypassed)


def _anchored(study: Study) -> tuple[Study, dict[str, float], tuple[str, ...]]:
    """The cost model scaled to what was measured of the whole network, and the limits that follow from it."""
    if not study.measured:
        return _estimated(study)
    median_ms = _once(
        study, "anchor", lambda: _measure(study, {"before": study.exported.path})["before"].median_ms
    )
    predicted = study.dense_costs()["latency_ms"]
    note = (
        f"Latencies are summed over measured ops and scaled by {median_ms / predicted:.2f}, "
        "so that the whole network is predicted as it was measured."
    )
    study = study.anchored(median_ms, study.exported.size_bytes)
    return study, limits_for(study.budget, study.cost, study.dense_costs()), (note,)


def _estimated(study: Study) -> tuple[Study, dict[str, float], tuple[str, ...]]:
    """The cost model of devices on which nothing can be measured from here; only the size of the file is known."""
    notes = [
        f"Latencies are {study.cost.origin}: nothing was measured on {study.budget.device}.",
        *study.cost.notes,
    ]
    if study.cost.assumed:
        notes.append(f"Assumed: {'; '.join(study.cost.assumed[:6])}.")
    if study.budget.dtype != "float32":
        notes.append(
            f"Costs are those of {study.budget.dtype}; the exported file is float32 and still to be converted."
        )
    study = study.anchored(None, study.exported.size_bytes if study.budget.dtype == "float32" else None)
    return study, limits_for(study.budget, study.cost, study.dense_costs()), tuple(notes)


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
        _keep(study, _of_least_error(tried))
        if NEAR <= share <= 1:
            break
        limits["latency_ms"] *= min(1.0, 0.985 / share) if share > 1 else min(1.15, 0.99 / share)
    found = _of_least_error(tried)
    share = next(share for share, other in tried if other is found)
    said = f"{len(tried)} plans were measured; the chosen one takes {share:.2f} of the latency asked for."
    return found, (said,)


def _of_least_error(tried: Sequence[tuple[float, Found]]) -> Found:
    """Of measured plans (share of the latency asked for, plan) the best that keeps it, else the fastest."""
    kept = [pair for pair in tried if pair[0] <= 1]
    return (min(kept, key=lambda p: p[1].error) if kept else min(tried, key=lambda p: p[0]))[1]


def _measured_share(study: Study, found: Found) -> float:
    """Measured latency of a plan over that of the whole network, both in one interleaved run."""

    def measured() -> float:
        small = pruned(study.graph.model, study.graph, found.plan).model
        with tempfile.TemporaryDirectory() as folder:
            exported = export_onnx(small, study.example, Path(folder) / "round.onnx")
            timed = _measure(study, {"before": study.exported.path, "after": exported.path})
        return timed["after"].median_ms / timed["before"].median_ms

    return _once(study, "latency", measured, found.plan.to_json())


def _once(study: Study, name: str, measured: Callable[[], float], *asked: str) -> float:
    """A measurement; where an interrupted run on this machine took it, as it was, so that the search goes the same
    way."""
    budget = study.budget
    slot = study.calibration.resume.slot(
        name, platform.node(), budget.device, budget.batch, budget.threads, *asked
    )
    if "value" in slot.found:
        return float(slot.found["value"])
    value = measured()
    slot.close(lambda: {"value": torch.tensor(value, dtype=torch.float64)})
    return value


def _keep(study: Study, found: Found, model: nn.Module | None = None) -> None:
    """Write down the best so far, for who stops the run."""
    atomic_write_text(study.folder / "plan.json", found.plan.to_json())
    if model is not None:
        save(model, study.folder / ("model.keras" if is_keras(model) else "model.safetensors"))


def _measure(study: Study, files: Mapping[str, Path], runs: int = 60) -> dict[str, Latency]:
    given, threads = feeds(study.exported, study.example, batch=study.budget.batch), study.budget.threads
    # Other programs on the machine are no part of the network's time, as far as the system can tell them apart.
    return measure_onnx(
        files, given, threads=threads, runs=runs, max_seconds=8.0, clock=processor_clock(threads),
        progress=study.progress,
    )  # fmt: skip


def _within_loss(
    study: Study, problem: Problem, name: str, largest: Found, base: float, evaluate: Evaluate
) -> tuple[Found, tuple[str, ...]]:
    """The smallest plan whose repaired network loses no more than is allowed, found by bisection over the cost that is
    minimised; `largest` is the best one within the other limits.

    Raises:
        BudgetError: within the other limits more is lost.
    """
    allowed, axis = study.budget.max_loss or 0.0, _axis_of(study.budget)
    dense = study.dense_costs()[axis]
    lost: dict[int, float] = {}

    def keeps(found: Found) -> bool:
        loss = 0.0
        if _changes(found):
            small, _ = _made(study, found)
            loss = base - evaluated(small.model, evaluate)
        lost[id(found)] = loss
        if loss <= allowed + ROUNDING:
            _keep(study, found, small.model if _changes(found) else None)
            return True
        return False

    def bisected(best: Found, low: float, high: float) -> Found:
        for _ in range(STEPS):
            middle = (low + high) / 2
            try:
                found = search(name, replace(problem, limits={**problem.limits, axis: middle * dense}))
            except BudgetError:
                low = middle
                continue
            finally:
                advance(1)
            if keeps(found):
                high, best = middle, found
            else:
                low = middle
        return best

    with study.progress.task("evaluating plans", total=STEPS) as advance:
        share = largest.costs[axis] / dense
        if not keeps(largest):
            whole = search(name, replace(problem, limits={axis: dense}))
            problem = replace(problem, limits={})
            raise _contradiction(study, lost[id(largest)], bisected(whole, share, 1.0).costs[axis])
        best = bisected(largest, min(SMALLEST, share / 2), share)
    if not _changes(best):
        return best, (
            f"Nothing was removed: each of {len(lost) - 1} smaller networks lost more than {allowed:g}.",
        )
    return best, (
        f"{len(lost)} repaired networks were evaluated to find the smallest {axis} within the loss allowed; the chosen "
        f"one loses {lost[id(best)]:.4g} of at most {allowed:g}, by the very data that chose it.",
    )


def _contradiction(study: Study, loss: float, closest: float) -> BudgetError:
    budget, axis = study.budget, _axis_of(study.budget)
    rest = ", ".join(f"{name}={value}" for name, value in budget.amounts.items())
    return BudgetError(
        f"`max_loss` and the rest of the budget must go together, but the best network within {rest} loses {loss:.4g} "
        f"by `evaluate`, and at most {budget.max_loss:g} may go. The smallest {axis} found within that loss is "
        f"{amount(closest)}: ask for as much, or allow more loss."
    )


def _axis_of(budget: Budget) -> str:
    """The cost that the trade-off curve runs along: the first that is limited, or latency."""
    return next(iter(budget.amounts), "latency_ms")


def _default_search(budget: Budget, rules: Rules) -> str:
    if budget.sparsity is not None:
        return "uniform"
    alone = rules.sparsity and budget.amounts == RULES_ALONE.amounts and budget.max_loss is None
    return "manual" if alone else "knapsack"


# --- the network itself ----------------------------------------------------------------------------------------------


Watch = Callable[[str, nn.Module], None]
"""Is told what was done to a network, and the network."""


def _made(
    study: Study, found: Found, watch: Watch = lambda done, model: None
) -> tuple[Pruned, tuple[str, ...]]:
    """The pruned network of a plan, verified, and repaired where there are inputs to do so; and what was done."""
    with _timed(study.seconds, "surgery"):
        small = pruned(study.graph.model, study.graph, found.plan)
    watch("as cut", small.model)
    if study.calibration.synthetic:
        return small, ("Nothing was repaired: that takes calibration inputs, a few hundred without labels.",)
    with _timed(study.seconds, "repair"):
        state, told = repair(study.graph, study.state, found.plan, study.calibration, progress=study.progress)
        fill(small.model, study.graph, found.plan, state)
    watch("after repair", small.model)
    return small, _repaired(told)


def _trained(
    study: Study, small: Pruned, finetune: Mapping[str, Any], watch: Watch, *, keep: bool
) -> tuple[Pruned, tuple[str, ...]]:
    """The network trained further, by default with the dense one as its teacher; and how that went."""
    asked = {"teacher": study.model, "folder": study.folder / "training" if keep else None, **finetune}
    if asked["teacher"] is None:
        asked.pop("distillation", None)
    with _timed(study.seconds, "train"):
        tuned = train(small.model, progress=study.progress, **asked)
    watch("after training", tuned.model)
    return replace(small, model=tuned.model), (tuned.note,)


def _repaired(told: RepairReport) -> tuple[str, ...]:
    """What repair did, in a sentence, and what it has to say."""
    before, after = told.before.key, told.after.key
    return (
        f"Repair chose '{told.chosen}' of {len(told.candidates)}: on {told.judged} inputs held out, answers are "
        f"{after:.3g} from the dense network's, {before:.3g} as cut.",
        *told.notes,
    )


def _matched(study: Study, small: Pruned, seconds: float) -> tuple[Pruned, tuple[str, ...]]:
    """The network after `seconds` of matching the dense one, and what came of it."""
    if study.calibration.synthetic:
        return small, ("Nothing was matched: that takes calibration inputs, a few hundred without labels.",)
    with _timed(study.seconds, "match"):
        batches = study.calibration.batches()
        found = match(small.model, study.model, batches, seconds=seconds, progress=study.progress)
    return replace(small, model=found.model), (found.note,)


def _finish(
    study: Study,
    choice: Choice,
    evaluate: Evaluate | None,
    base: float | None,
    match_seconds: float | None,
    finetune: Mapping[str, Any] | None,
    *,
    keep: bool,
) -> Result:
    stages: dict[str, float] = {} if base is None or finetune is None else {"before": base}

    def watch(done: str, model: nn.Module) -> None:
        if evaluate is not None and finetune is not None:
            stages[done] = evaluated(model, evaluate)

    _keep(study, choice.found)
    small, notes = _made(study, choice.found, watch)
    _keep(study, choice.found, small.model)
    if match_seconds is not None:
        small, matched = _matched(study, small, match_seconds)
        watch("after matching", small.model)
        _keep(study, choice.found, small.model)
        notes = (*notes, *matched)
    if finetune is not None:
        small, trained = _trained(study, small, finetune, watch, keep=keep)
        _keep(study, choice.found, small.model)
        notes = (*notes, *trained)
    with _timed(study.seconds, "export"):
        exported = export_onnx(small.model, study.example, study.folder / "model.onnx")
    latency: dict[str, Latency] = {}
    if study.measured:
        with _timed(study.seconds, "measure"):
            latency = _measure(study, {"before": study.exported.path, "after": exported.path}, runs=200)
    with _timed(study.seconds, "evaluate"):
        same = _agreement(study, small.model)
        after = evaluated(small.model, evaluate) if evaluate else None

    def quality(found: Found) -> float:
        told = glance(study.graph, study.state, found.plan, study.calibration)
        return 1 - told.error if told.agreement is None else told.agreement

    report = compose(
        Findings(
            model=study.model,
            graph=study.graph,
            budget=study.budget,
            limits=choice.limits,
            cost=choice.cost,
            whole=choice.whole,
            scores=choice.scores,
            found=choice.found,
            curve=tuple((found, quality(found)) for found in choice.curve),
            chosen_quality=quality(choice.found),
            calibration=study.calibration,
            before=Network(study.exported, latency.get("before"), base),
            after=Network(exported, latency.get("after"), after),
            agreement=same,
            surgery_difference=small.difference,
            notes=(*choice.notes, *notes, *filter(None, [study.calibration.resume.note])),
            seconds=study.seconds,
            stages=stages,
        )
    )
    if keep:
        atomic_write_text(study.folder / "report.json", to_json(report))
        atomic_write_text(study.folder / "report.html", to_html(report))
    return Result(_handed(small.model), choice.found.plan, report)


def _handed(model: Any) -> Any:
    """The network as the user knows it."""
    if not is_keras(model):
        return model
    from sned.surgery.keras.road import handed

    return handed(model)


def _agreement(study: Study, small: nn.Module) -> float | None:
    """How often both networks answer alike on the calibration inputs; None where no output has classes."""
    try:
        return agreement(study.model, small, study.calibration.batches())
    except CalibrationError:
        return None


# --- small things ----------------------------------------------------------------------------------------------------


def _one_of(sparsity: float | None, budget: Budget | None, rules: Rules) -> Budget:
    """What is asked, as a budget."""
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f'`budget` must be a `sned.Budget`, such as Budget(macs="50%"), got {budget!r}.')
    if sparsity is None and budget is None and rules.sparsity:
        return RULES_ALONE
    if (sparsity is None) == (budget is None):
        raise BudgetError(
            "Say how much may remain: give either `sparsity`, such as 0.5, or a `Budget`; or rules that give groups a "
            "sparsity."
        )
    return budget if budget is not None else Budget(sparsity=sparsity)


def _check_names(saliency: str | None, search_by: str | None) -> None:
    """A name that is mistyped is told before any work is done."""
    if saliency is not None:
        criterion_named(saliency)
    if search_by is not None:
        search_named(search_by)


def _checked(labels: torch.Tensor | None, learnt: Calibration | None) -> torch.Tensor | None:
    """Labels, if there is one for every calibration input."""
    if labels is None:
        return None
    if learnt is None or learnt.synthetic:
        raise CalibrationError(
            "`labels` belong to calibration inputs, and none were given. Pass `calibration` too."
        )
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or len(labels.shape) == 0:
        got = str(labels.dtype) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise CalibrationError(
            f"`labels` must be an int64 tensor with a class for every calibration input, got {got}."
        )
    if len(labels) < learnt.count:
        raise CalibrationError(
            f"`labels` must hold one for every calibration input, in their order, got {len(labels)} for {learnt.count}."
        )
    return labels


def _rules(given: Rules | Mapping[str, Any] | str | Path | None) -> Rules:
    if given is None:
        return Rules()
    if isinstance(given, str | Path):
        return Rules.from_toml(Path(given))
    return given if isinstance(given, Rules) else Rules.from_data(given)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """The folder asked for, made if need be; else one that is gone afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    yield Path(out)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
