"""The short road: a model, an example and a budget go in; a smaller model comes out, with its report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sned.calibration import Resume, calibrate
from sned.devices import Budget, cost_for, limits_for
from sned.errors import BudgetError, CalibrationError, ModelError, UserError
from sned.export import export_onnx
from sned.files import atomic_write_text, check_place
from sned.graph import Graph, Plan
from sned.graph.example import Inputs
from sned.measure import Latency, agreement, evaluated
from sned.memory import reused
from sned.pipeline.asked import (
    AUTO,
    RULES_ALONE,
    Evaluate,
    check_deep,
    check_names,
    checked,
    default_search,
    layers_of,
    one_of,
    rules_of,
)
from sned.pipeline.choice import Choice, choose
from sned.pipeline.depth import deepest
from sned.pipeline.making import handed, made, matched, trained
from sned.pipeline.study import ASIDE, Study, check_groups, keep, measure, scored, study_of, timed
from sned.progress import SILENT, Progress
from sned.repair import glance
from sned.repair.match import check_seconds
from sned.repair.repair import held_out
from sned.report import Report, to_html, to_json
from sned.report.compose import Findings, Network, compose
from sned.saliency import Evidence
from sned.search import Found, Problem, Rules, search
from sned.surgery.home import CPU, asked_at, home_of, moved, moved_inputs, values_of
from sned.surgery.keras import is_keras

RESUME = ".resume"
"""Folder inside `out` for what an interrupted run had learnt; gone when a run is complete."""


@dataclass(frozen=True)
class Result:
    """What `prune` returns: the smaller network, the plan that made it, and the report of the run."""

    model: Any
    plan: Plan
    report: Report


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
            "manual" for rules alone, "global" for a criterion that only ranks units (without calibration), else
            "knapsack".
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
        ModelError: nothing in the network can go.

    Example:
        >>> plan = sned.plan(sned.trace(model, x), sparsity=0.5)
    """
    check_names(saliency, search_by)
    if not isinstance(graph, Graph):
        raise ModelError(
            f"`graph` must be what `sned.trace` made, got {type(graph).__name__}: `sned.plan(sned.trace(model, x), …)`."
        )
    respected = rules_of(rules)
    asked = one_of(sparsity, budget, respected)
    if asked.max_loss is not None:
        raise BudgetError(
            "`max_loss` takes networks that are pruned, repaired and evaluated: use `sned.prune` for it."
        )
    check_groups(graph)
    if is_keras(graph.model):
        from sned.surgery.keras.road import calibration_of

        graph.model.pull()
        calibration = calibration_of(calibration, *graph.example.args)
    state = values_of(graph.model)
    learnt = calibrate(graph, state, calibration, progress=progress) if calibration is not None else None
    scores = scored(Evidence(graph, state, learnt, checked(labels, learnt), progress=progress), saliency)
    problem = Problem(graph, scores, rules=respected, sparsity=asked.sparsity)
    if asked.amounts:
        cost = cost_for(graph, asked, progress=progress)
        dense = cost.evaluate(np.array([[group.size for group in graph.groups]], np.float64)).at(0)
        problem = replace(problem, cost=cost, limits=limits_for(asked, cost, dense))
    return search(search_by or default_search(asked, respected, scores.criterion), problem).plan


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
        model: any trained `nn.Module`, or a Keras 3 model on any backend; it is not touched. One that is on a GPU is
            worked on as a copy on the CPU; `evaluate` and `finetune` get it where it was, and so does the caller.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; for a Keras model what
            `model.predict` takes.
        budget: what may remain, and on which device; None where rules or `without` alone say what goes.
        calibration: batches of inputs as the model takes them, a few hundred, without labels. Without them units are
            chosen by their weights, and nothing is repaired. Layers are scored and repaired by the first 1,024 (of a
            small network up to 4,096); matching learns from up to 65,536 more, and the more the better. For a Keras
            model also an array, a `tf.data.Dataset` or a `keras.utils.PyDataset`, whose labels are left aside.
        labels: int64 `[n]`, classes of the calibration inputs in their order, for criteria that take a loss ("taylor",
            "fisher", "snip", "grasp"); nothing else needs any.
        evaluate: how good a model is, a number, higher is better. Used to report; and to choose only where
            `budget.max_loss` asks for it, so give validation data then, not the test set.
        saliency: which units matter; by default from calibration inputs where there are any.
        search_by: how much goes where; by default "uniform" for a sparsity, "manual" for rules alone, "global" for
            a criterion that only ranks units (without calibration), else "knapsack".
        rules: groups to protect, counts to keep to: `sned.search.Rules`, a dict with its fields, or a TOML file of it.
        without: layers and residual branches to leave out altogether, by their names in `graph.layers`. With
            calibration inputs what remains is repaired first, towards the answers of the whole network. "auto" tries
            more and more of them, those first that the answers miss least for what they save, and takes what, once
            repaired, answers most like the whole network; that takes a budget, calibration inputs, and thrice the time.
        match_seconds: time to spend, after repair, on gradient steps towards the dense network's answers and features
            on the calibration inputs; no labels are needed. None for no such steps.
        finetune: what `sned.finetune` takes, `data` among it: the repaired network is trained so, by default with the
            dense one as its teacher (`"teacher": None` for none).
        out: a folder for the model, the plan, the ONNX files and the report. A run that was interrupted is resumed
            there: what it had learnt is kept in `.resume` until a run is complete, the checkpoint of training too, and
            used where model, inputs and versions are the same. The best plan so far is kept beside it.
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
        WriteError: `out` is no folder, or cannot be written to.

    Example:
        >>> result = sned.prune(model, x, budget=sned.Budget(latency_ms="50%"), calibration=batches)
        >>> result.model, result.report
    """
    check_seconds(match_seconds)
    check_names(saliency, search_by)
    respected = rules_of(rules)
    without = layers_of(without)
    deep = without == (AUTO,)
    asked = RULES_ALONE if budget is None and without else one_of(None, budget, respected)
    if deep:
        check_deep(asked, calibration is not None)
    if asked.max_loss is not None and evaluate is None:
        raise BudgetError("`max_loss` is measured by `evaluate`: pass a function from a model to a number.")
    if out is not None:
        check_place(out, folder=True)
    if finetune is not None and "data" not in finetune:
        raise UserError(
            "`finetune` must hold what `sned.finetune` takes, `data` at least: {'data': loader, 'epochs': 10}."
        )
    if is_keras(model):
        from sned.surgery.keras.precision import refuse_bfloat16
        from sned.surgery.keras.road import calibration_of, evaluate_of, inputs_of, network_for

        if finetune is not None:
            raise UserError(
                "A Keras model is trained by its own `fit`: prune it without `finetune`, and give the result to "
                "`sned.keras.Distiller`, with the original as its teacher."
            )
        model, evaluate = network_for(model, example_inputs), evaluate_of(evaluate)
        refuse_bfloat16(model.keras)
        example_inputs = inputs_of(example_inputs)
        calibration = calibration_of(calibration, *example_inputs)
    home = home_of(model)
    if home != CPU:
        model, example_inputs = moved(model, CPU), moved_inputs(example_inputs, CPU)
        evaluate = evaluate and asked_at(home, evaluate)
    with reused(), _folder(out) as folder:
        resume = Resume(None if out is None else folder / RESUME)
        study = study_of(
            model,
            example_inputs,
            asked,
            calibration,
            labels,
            saliency,
            respected,
            () if deep else without,
            folder,
            progress,
            resume,
            matches=match_seconds is not None,
        )
        base = evaluated(model, evaluate) if evaluate else None
        chosen = choose(study, search_by, evaluate, base)
        if deep:
            study, chosen = deepest(study, chosen, search_by)
        result = _finish(study, chosen, evaluate, base, match_seconds, finetune, stays=out is not None)
        resume.clear()
        return result if home == CPU else replace(result, model=moved(result.model, home))


def _finish(
    study: Study,
    choice: Choice,
    evaluate: Evaluate | None,
    base: float | None,
    match_seconds: float | None,
    finetune: Mapping[str, Any] | None,
    *,
    stays: bool,
) -> Result:
    stages: dict[str, float] = {} if base is None or finetune is None else {"before": base}

    def watch(done: str, model: nn.Module) -> None:
        if evaluate is not None and finetune is not None:
            stages[done] = evaluated(model, evaluate)

    keep(study, choice.found)
    small, _, notes = made(study, choice.found, watch)
    keep(study, choice.found, small.model)
    if match_seconds is not None:
        small, said = matched(study, small, match_seconds)
        watch("after matching", small.model)
        keep(study, choice.found, small.model)
        notes = (*notes, *said)
    if finetune is not None:
        # Named by all that the weights to start from follow from, so that a run on others begins anew.
        folder = study.calibration.resume.place("training", choice.found.plan.to_json(), match_seconds)
        small, said = trained(study, small, finetune, watch, folder)
        keep(study, choice.found, small.model)
        notes = (*notes, *said)
    with timed(study.seconds, "export"), study.progress.task("exporting", total=1):
        exported = export_onnx(small.model, study.example, study.folder / "model.onnx")
    if study.graph.batched and not exported.dynamic_batch:
        only = (
            f"The file of the pruned network takes {exported.batch} inputs at once alone, and was timed so."
        )
        notes = (*notes, f"{only} {exported.static_because}")
    latency: dict[str, Latency] = {}
    if study.measured:
        with timed(study.seconds, "measure"):
            latency = measure(study, exported, runs=200, clock=time.perf_counter_ns)
    with timed(study.seconds, "evaluate"):
        same = _agreement(study, small.model)
        after = evaluated(small.model, evaluate) if evaluate else None

    def quality(found: Found) -> float:
        if not found.changes:
            return 1.0
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
            compared=_compared(study),
            surgery_difference=small.difference,
            notes=(*choice.notes, *notes, *filter(None, [study.calibration.resume.note])),
            seconds=study.seconds,
            stages=stages,
        )
    )
    if stays:
        atomic_write_text(study.folder / "report.json", to_json(report))
        atomic_write_text(study.folder / "report.html", to_html(report))
    return Result(handed(small.model), choice.found.plan, report)


def _agreement(study: Study, small: nn.Module) -> float | None:
    """How often both networks answer alike on the inputs that repair holds out; None where no output has classes."""
    start = held_out(study.calibration, study.graph)
    try:
        dense = study.calibration.answers(start) if study.graph is study.whole.graph else study.model
        return agreement(dense, small, study.calibration.batches(start), study.whole.graph)
    except CalibrationError:
        return None


def _compared(study: Study) -> str:
    """Which inputs `_agreement` is of."""
    start = held_out(study.calibration, study.graph)
    kind = "random" if study.calibration.synthetic else "calibration"
    return f"{study.calibration.count - start} {kind} inputs{' that repair held out' if start else ''}"


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """The folder asked for, made if need be; else one that is gone afterwards. Of a run that ends before it has a plan
    nothing is left, and what an older one left there stays."""
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing if out is None else out)
        try:
            yield folder
        finally:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)
