"""The short road: a model, an example and a budget go in; a smaller model that keeps the budget comes out, with proof.

The only module that sees all stages, and the only one that loops back: a measured latency that misses its budget
tightens the search.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sned.calibration import Calibration, calibrate
from sned.devices import Budget, MeasuredCost, cost_model, find_device
from sned.errors import BudgetError, CalibrationError, ModelError
from sned.export import Exported, export_onnx, feeds
from sned.files import atomic_write_text
from sned.graph import Graph, Plan
from sned.graph.example import Inputs
from sned.graph.trace import state_of
from sned.measure import Latency, agreement, evaluated, measure_onnx
from sned.progress import SILENT, Progress
from sned.repair import RepairReport, glance, repair
from sned.report import Report, to_html, to_json
from sned.report.compose import Findings, Network, compose
from sned.saliency import Evidence, Scores, score, sensitivities, weighed
from sned.search import Found, Problem, Rules, curve, remeasured, search
from sned.surgery import save, trace
from sned.surgery.keras import is_keras
from sned.surgery.pytorch import Pruned, fill, pruned

ROUNDS = 4
"""How many plans are measured at most before the best of them is taken."""

NEAR = 0.94
"""A measured latency between this share of the one asked for and the whole of it is near enough."""

INPUTS = 1024
"""Calibration inputs read at most."""

SYNTHETIC = 64
"""Random inputs where there are no real ones: they only serve to compare answers."""

Evaluate = Callable[[Any], float]


@dataclass(frozen=True)
class Result:
    """What `prune` returns: the smaller network, the plan that made it, and the report of the run."""

    model: Any
    plan: Plan
    report: Report


@dataclass(frozen=True)
class Study:
    """All that is known about a network before anything is removed."""

    model: nn.Module
    example: Inputs
    graph: Graph
    state: Mapping[str, torch.Tensor]
    calibration: Calibration
    scores: Scores
    cost: MeasuredCost
    budget: Budget
    rules: Rules
    folder: Path
    exported: Exported
    progress: Progress
    weigh: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """The search problem without limits."""
        return Problem(self.graph, self.scores, self.cost, rules=self.rules)

    def dense_costs(self) -> dict[str, float]:
        """Predicted costs of the whole network."""
        sizes = np.array([[group.size for group in self.graph.groups]], np.float64)
        return self.cost.evaluate(sizes).at(0)


def plan(
    graph: Graph,
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    saliency: str | None = None,
    search_by: str | None = None,
    rules: Rules | Mapping[str, Any] | None = None,
    calibration: Iterable[Any] | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """Choose which units go; nothing is changed yet.

    Args:
        graph: what `sned.trace` made.
        sparsity: fraction of the units of each group to remove, in [0, 1); or
        budget: what may remain (MACs, parameters, predicted latency …).
        saliency: which units matter: a name in `sned.saliency.CRITERIA`; by default "l2", or, with calibration
            inputs, "reconstruction" weighed by what the network answers.
        search_by: how much goes where: a name in `sned.search.SEARCHES`; "uniform" for a sparsity, else "knapsack".
        rules: what must be respected: `Rules`, or a dict of patterns such as `{"protect": ["stem.*"]}`.
        calibration: batches of inputs, for criteria that look at activations.
        progress: shown while it runs.

    Returns:
        The `Plan`, for `sned.apply`.

    Raises:
        BudgetError: neither or both of `sparsity` and `budget`, or the budget cannot be reached.

    Example:
        >>> plan = sned.plan(sned.trace(model, x), sparsity=0.5)
    """
    asked = _one_of(sparsity, budget)
    if is_keras(graph.model):
        from sned.surgery.keras.road import calibration_of

        graph.model.pull()
        calibration = calibration_of(calibration, *graph.example.args)
    state = state_of(graph.model)
    learnt = calibrate(graph, state, calibration, progress=progress) if calibration is not None else None
    scores = _scores(Evidence(graph, state, learnt, progress=progress), saliency)
    problem = Problem(graph, scores, rules=_rules(rules), sparsity=asked.sparsity)
    if asked.amounts:
        cost = cost_model(
            graph, find_device(asked.device), batch=asked.batch, threads=asked.threads, progress=progress
        )
        dense = cost.evaluate(np.array([[group.size for group in graph.groups]], np.float64)).at(0)
        problem = replace(problem, cost=cost, limits=asked.limits(dense))
    return search(search_by or _default_search(asked), problem).plan


def prune(
    model: Any,
    example_inputs: Inputs,
    *,
    budget: Budget,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    saliency: str | None = None,
    search_by: str | None = None,
    rules: Rules | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Cut a trained network down to a budget, repair it without training, and prove what was gained.

    Args:
        model: any trained `nn.Module`, or a Keras 3 model on any backend; it is not touched.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; for a Keras model what
            `model.predict` takes.
        budget: what may remain, and on which device.
        calibration: batches of inputs as the model takes them, a few hundred, without labels. Without them units are
            chosen by their weights, and nothing is repaired. For a Keras model also an array, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`, whose labels are left aside.
        evaluate: how good a model is, a number, higher is better. Used to report; and to choose only where
            `budget.max_loss` asks for it, so give validation data then, not the test set.
        saliency: which units matter; by default from calibration inputs where there are any.
        search_by: how much goes where; by default "uniform" for a sparsity, else "knapsack".
        rules: groups to protect, counts to keep to: `sned.search.Rules` or a dict with its fields.
        out: a folder for the model, the plan, the ONNX files and the report.
        progress: shown while it runs.

    Returns:
        The pruned model (of the class of `model`), its plan and the report.

    Raises:
        ModelError: the model does not run on the example, holds NaN weights, or nothing in it can go.
        BudgetError: the budget is below what is reachable; says the smallest reachable.
        CalibrationError: the calibration inputs are not what the model takes.
        SurgeryError, ExportError: the result does not compute what it must; nothing is handed over.

    Example:
        >>> result = sned.prune(model, x, budget=sned.Budget(latency_ms="50%"), calibration=batches)
        >>> result.model, result.report
    """
    if budget.max_loss is not None and evaluate is None:
        raise BudgetError("`max_loss` is measured by `evaluate`: pass a function from a model to a number.")
    if is_keras(model):
        from sned.surgery.keras.road import calibration_of, evaluate_of, inputs_of, network_for

        model, evaluate = network_for(model, example_inputs), evaluate_of(evaluate)
        example_inputs = inputs_of(example_inputs)
        calibration = calibration_of(calibration, *example_inputs)
    with _folder(out) as folder:
        study = _study(model, example_inputs, budget, calibration, saliency, _rules(rules), folder, progress)
        base = evaluated(model, evaluate) if evaluate else None
        chosen = _choose(study, search_by, evaluate, base)
        return _finish(study, chosen, evaluate, base, keep=out is not None)


# --- before anything is removed --------------------------------------------------------------------------------------


def _study(
    model: nn.Module,
    example: Inputs,
    budget: Budget,
    batches: Iterable[Any] | None,
    saliency: str | None,
    rules: Rules,
    folder: Path,
    progress: Progress,
) -> Study:
    seconds: dict[str, float] = {}
    device = find_device(budget.device)
    _check_weights(model)
    with _timed(seconds, "trace"):
        graph = trace(model, example)
    _check_groups(graph)
    state = state_of(model)
    with _timed(seconds, "calibrate"):
        limit = SYNTHETIC if batches is None else INPUTS
        learnt = calibrate(graph, state, batches, limit=limit, progress=progress)
    with _timed(seconds, "score"):
        scores = _scores(Evidence(graph, state, learnt, progress=progress), saliency)
    with _timed(seconds, "cost model"):
        cost = cost_model(graph, device, batch=budget.batch, threads=budget.threads, progress=progress)
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
        cost,
        budget,
        rules,
        folder,
        exported,
        progress,
        weigh,
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
    cost: MeasuredCost
    scores: Scores
    curve: tuple[Found, ...]
    notes: tuple[str, ...] = ()


def _choose(study: Study, search_by: str | None, evaluate: Evaluate | None, base: float | None) -> Choice:
    budget = study.budget
    with _timed(study.seconds, "search"):
        study, limits, notes = _anchored(study)
        name = search_by or _default_search(budget)
        problem = _weighed(study, replace(study.problem, limits=limits, sparsity=budget.sparsity))
        points = curve(problem, _axis_of(budget), points=10)
        if budget.max_loss is not None and evaluate is not None and base is not None:
            found, said = _within_loss(study, problem, name, base - budget.max_loss, evaluate)
            return Choice(found, limits, study.cost, problem.scores, points, (*notes, *said))
        if "latency_ms" not in limits:
            return Choice(search(name, problem), limits, study.cost, problem.scores, points, notes)
        found, said = _within_latency(study, problem, name)
        return Choice(found, limits, study.cost, problem.scores, points, (*notes, *said))


def _anchored(study: Study) -> tuple[Study, dict[str, float], tuple[str, ...]]:
    """The cost model scaled to the measured latency of the whole network, and the limits that follow from it."""
    latency = _measure(study, {"before": study.exported.path})["before"]
    sizes = np.array([group.size for group in study.graph.groups], np.float64)
    predicted = study.cost.evaluate(sizes[None]).at(0)["latency_ms"]
    cost = study.cost.anchored(sizes, latency.median_ms, size_bytes=study.exported.size_bytes)
    anchored = replace(study, cost=cost)
    note = (
        f"Latencies are summed over measured ops and scaled by {latency.median_ms / predicted:.2f}, "
        "so that the whole network is predicted as it was measured."
    )
    return anchored, study.budget.limits(anchored.dense_costs()), (note,)


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
        if NEAR <= share <= 1:
            break
        limits["latency_ms"] *= min(1.0, 0.985 / share) if share > 1 else min(1.15, 0.99 / share)
    kept = [pair for pair in tried if pair[0] <= 1]
    share, found = min(kept, key=lambda p: p[1].error) if kept else min(tried, key=lambda p: p[0])
    said = f"{len(tried)} plans were measured; the chosen one takes {share:.2f} of the latency asked for."
    return found, (said,)


def _measured_share(study: Study, found: Found) -> float:
    """Measured latency of a plan over that of the whole network, both in one interleaved run."""
    small = pruned(study.model, study.graph, found.plan).model
    with tempfile.TemporaryDirectory() as folder:
        exported = export_onnx(small, study.example, Path(folder) / "round.onnx")
        timed = _measure(study, {"before": study.exported.path, "after": exported.path})
    return timed["after"].median_ms / timed["before"].median_ms


def _measure(study: Study, files: Mapping[str, Path], runs: int = 60) -> dict[str, Latency]:
    given = feeds(study.exported, study.example, batch=study.budget.batch)
    return measure_onnx(
        files, given, threads=study.budget.threads, runs=runs, max_seconds=8.0, progress=study.progress
    )


def _within_loss(
    study: Study, problem: Problem, name: str, floor: float, evaluate: Evaluate
) -> tuple[Found, tuple[str, ...]]:
    """The smallest plan whose repaired network still reaches `floor`, by bisection over the cost that is minimised."""
    axis = _axis_of(study.budget)
    dense = study.dense_costs()[axis]
    low, high = 0.05, 1.0
    best = search(name, replace(problem, limits={**problem.limits, axis: problem.limits.get(axis, dense)}))
    steps = 0
    with study.progress.task("evaluating plans", total=6) as advance:
        for _ in range(6):
            middle = (low + high) / 2
            try:
                found = search(name, replace(problem, limits={**problem.limits, axis: middle * dense}))
            except BudgetError:
                low = middle
                continue
            finally:
                advance(1)
            steps += 1
            small, _ = _made(study, found)
            if evaluated(small.model, evaluate) >= floor:
                high, best = middle, found
            else:
                low = middle
    return best, (
        f"{steps} repaired networks were evaluated to find the smallest {axis} within the loss allowed.",
    )


def _axis_of(budget: Budget) -> str:
    """The cost that the trade-off curve runs along: the first that is limited, or latency."""
    return next(iter(budget.amounts), "latency_ms")


def _default_search(budget: Budget) -> str:
    return "uniform" if budget.sparsity is not None else "knapsack"


# --- the network itself ----------------------------------------------------------------------------------------------


def _made(study: Study, found: Found) -> tuple[Pruned, tuple[str, ...]]:
    """The pruned network of a plan, verified, and repaired where there are inputs to do so; and what was done."""
    with _timed(study.seconds, "surgery"):
        small = pruned(study.model, study.graph, found.plan)
    if study.calibration.synthetic:
        return small, ("Nothing was repaired: that takes calibration inputs, a few hundred without labels.",)
    with _timed(study.seconds, "repair"):
        state, told = repair(study.graph, study.state, found.plan, study.calibration, progress=study.progress)
        fill(small.model, study.graph, found.plan, state)
    return small, _repaired(told)


def _repaired(told: RepairReport) -> tuple[str, ...]:
    """What repair did, in a sentence, and what it has to say."""
    before, after = told.before.key, told.after.key
    return (
        f"Repair chose '{told.chosen}' of {len(told.candidates)}: on {told.judged} inputs held out, answers are "
        f"{after:.3g} from the dense network's, {before:.3g} as cut.",
        *told.notes,
    )


def _finish(
    study: Study, choice: Choice, evaluate: Evaluate | None, base: float | None, *, keep: bool
) -> Result:
    small, repaired = _made(study, choice.found)
    with _timed(study.seconds, "export"):
        exported = export_onnx(small.model, study.example, study.folder / "model.onnx")
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
            scores=choice.scores,
            found=choice.found,
            curve=tuple((found, quality(found)) for found in choice.curve),
            chosen_quality=quality(choice.found),
            calibration=study.calibration,
            before=Network(study.exported, latency["before"], base),
            after=Network(exported, latency["after"], after),
            agreement=same,
            surgery_difference=small.difference,
            notes=(*choice.notes, *repaired),
            seconds=study.seconds,
        )
    )
    if keep:
        save(small.model, study.folder / ("model.keras" if is_keras(small.model) else "model.safetensors"))
        atomic_write_text(study.folder / "plan.json", choice.found.plan.to_json())
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


def _one_of(sparsity: float | None, budget: Budget | None) -> Budget:
    if (sparsity is None) == (budget is None):
        raise BudgetError("Say how much may remain: give either `sparsity`, such as 0.5, or a `Budget`.")
    return budget if budget is not None else Budget(sparsity=sparsity)


def _rules(given: Rules | Mapping[str, Any] | None) -> Rules:
    if given is None:
        return Rules()
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
