"""All that is known about a network before anything is removed, and what is measured on the way."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from filecmp import cmp
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from sned.calibration import Calibration, Resume, calibrate
from sned.devices import Budget, Cost, FleetCost, check_runs, cost_for, find_devices, limits_for
from sned.devices.model import batch_of
from sned.errors import ModelError
from sned.export import Exported, export_onnx, feeds
from sned.files import atomic_write_text, staged_path
from sned.graph import Graph
from sned.graph.example import Inputs
from sned.graph.trace import state_of
from sned.measure import Latency, measure_onnx
from sned.memory import trim
from sned.pipeline.asked import checked
from sned.pipeline.shortening import mended
from sned.progress import Progress
from sned.repair import RepairReport
from sned.repair.match import FURTHER, check_enough, check_learns
from sned.report.compose import Whole
from sned.saliency import Evidence, Scores, score
from sned.search import Found, Problem, Rules
from sned.surgery import save, trace
from sned.surgery import without as leave_out
from sned.surgery.keras import is_keras
from sned.surgery.twin import twin
from sned.timing import Clock, processor_clock

SEARCHED_SECONDS, TOLD_SECONDS = 8.0, 3.0
"""Of timing networks against each other, where a latency was asked for and where it is only told."""

DENSE = "dense.onnx"
"""The whole network, in the output folder."""

ASIDE = ".dense.part"
"""Where in the output folder the whole network lies as long as no plan has come of it: an older one stays till then."""

MODELS = ("model.safetensors", "model.keras")
"""The pruned one, of PyTorch and of Keras."""

LAST = ("model.onnx", "model.onnx.data", "report.json", "report.html")
"""What a run makes of the pruned one at its end."""


SYNTHETIC = 64
"""Random inputs where there are no real ones: they only serve to compare answers."""


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
    saliency: str | None
    labels: torch.Tensor | None
    shortened: RepairReport | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def weigh(self) -> bool:
        """Whether errors of groups are weighed by what they do to the answers."""
        return self.saliency is None and not self.calibration.synthetic

    @property
    def problem(self) -> Problem:
        """The search problem without limits."""
        return Problem(self.graph, self.scores, self.cost, rules=self.rules)

    @property
    def measured(self) -> bool:
        """Whether networks can be timed on the device from here."""
        return self.cost.basis == "measured"

    @property
    def dense(self) -> Path:
        """The file of the whole network."""
        aside = self.folder / ASIDE / DENSE
        return aside if aside.exists() else self.folder / DENSE

    def dense_costs(self) -> dict[str, float]:
        """Predicted costs of the user's own network."""
        return self.whole.costs()

    def anchored(self, latency_ms: float | None, size_bytes: float | None) -> Study:
        """The same, its cost models scaled to what was measured of the user's own network."""
        whole = self.whole.anchored(latency_ms, size_bytes)
        return replace(self, whole=whole, cost=self.cost.anchored_like(whole.cost))


def study_of(
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
    *,
    matches: bool = False,
) -> Study:
    """Trace, calibrate, score, and make the cost model; the arguments are those of `prune`, and whether it matches."""
    seconds: dict[str, float] = {}
    find_devices(budget.device)  # a wrong name is found before anything else
    _check_weights(model)
    with timed(seconds, "trace"), progress.task("tracing", total=1):
        dense = trace(model, example)
        graph = leave_out(dense, without)
    check_groups(graph)
    for said in unanswered(dense):
        warnings.warn(said, stacklevel=3)
    if matches:
        check_learns(dense, model)
    check_runs(graph, budget)
    rules.choices(graph)  # a wrong name is found before anything is measured
    with timed(seconds, "export"), progress.task("exporting", total=1):
        # First, for what cannot be exported is best known before the long work.
        exported = export_onnx(model, example, folder / ASIDE / DENSE)
    limit, further = SYNTHETIC if batches is None else None, FURTHER if matches else 0
    inputs: Iterable[Any] | Calibration | None = batches
    shortened: RepairReport | None = None
    if without and batches is not None:
        with timed(seconds, "shorten"):
            graph, inputs, shortened = mended(dense, graph, batches, further, progress, resume)
    state = state_of(graph.model)
    with timed(seconds, "calibrate"):
        learnt = calibrate(
            graph, state, inputs, limit=limit, further=further, progress=progress, resume=resume
        )
    if matches:
        check_enough(learnt)
    with timed(seconds, "score"):
        known = checked(labels, learnt)
        scores = scored(Evidence(graph, state, learnt, known, progress=progress), saliency)
    with timed(seconds, "cost model"):
        costs = [
            cost_for(each, budget, progress=progress) for each in ([dense, graph] if without else [dense])
        ]
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
        saliency,
        labels,
        shortened,
        seconds,
    )


def shorter(study: Study, names: Sequence[str]) -> Study:
    """The study of the same network without some of its layers."""
    dense, known, progress = study.whole.graph, study.calibration, study.progress
    with timed(study.seconds, "shorten"):
        graph, inputs, told = mended(dense, leave_out(dense, names), known, 0, progress, known.resume)
    state = state_of(graph.model)
    with timed(study.seconds, "calibrate"):
        learnt = calibrate(graph, state, inputs, progress=progress, resume=known.resume)
    with timed(study.seconds, "score"):
        evidence = Evidence(graph, state, learnt, checked(study.labels, learnt), progress=progress)
        scores = scored(evidence, study.saliency)
    with timed(study.seconds, "cost model"):
        cost = cost_for(graph, study.budget, progress=progress)
    return replace(
        study, graph=graph, state=state, calibration=learnt, scores=scores, cost=cost, shortened=told
    )


def _check_weights(model: nn.Module) -> None:
    for name, tensor in state_of(model).items():
        # A mask that lies in a buffer may hold infinity.
        weight = isinstance(tensor, nn.Parameter)
        if bool((tensor.isfinite().logical_not() if weight else tensor.isnan()).any()):
            raise ModelError(
                f"Weights must be finite numbers, but {name!r} holds NaN or infinity. "
                "Load a checkpoint from before the training diverged."
            )


def check_groups(graph: Graph) -> None:
    """Refuse a network in which nothing can go.

    Raises:
        ModelError: there is no group; the first reasons are given.
    """
    if not graph.groups:
        reasons = (
            "; ".join(f"{f.name}: {f.reason}" for f in graph.frozen[:3]) or "it has no weights in its path"
        )
        raise ModelError(
            f"Nothing in this network can be removed ({reasons}). `sned inspect` shows every reason."
        )


def unanswered(graph: Graph) -> tuple[str, ...]:
    """What is to be known of a network of whose outputs none has rows."""
    if any(graph.rows):
        return ()
    return (
        "This network returns no answer to each input (a loss of them all, say), so that what pruning changes in its "
        "answers is compared with nothing: not to choose what goes, not for agreement. Return the logits as well.",
    )


def scored(evidence: Evidence, saliency: str | None) -> Scores:
    """The criterion asked for; else the one that knows most of what there is, weighed by what the network answers."""
    if saliency is not None:
        return score(saliency, evidence)
    if evidence.calibration is None or evidence.calibration.synthetic:
        return score("l2", evidence)
    return score("reconstruction", evidence)


def anchored(study: Study) -> tuple[Study, dict[str, float], tuple[str, ...]]:
    """The cost model scaled to what was measured of the whole network, and the limits that follow from it."""
    if not study.measured:
        return _estimated(study)
    runs = 60 if study.budget.latency_ms is not None else 20
    median_ms = once(study, "anchor", lambda: measure(study, runs=runs)["before"].median_ms)
    predicted = study.dense_costs()["latency_ms"]
    note = (
        f"Latencies are summed over measured ops and scaled by {median_ms / predicted:.2f}, "
        "so that the whole network is predicted as it was measured."
    )
    return *_scaled(study, median_ms), (note,)


def _estimated(study: Study) -> tuple[Study, dict[str, float], tuple[str, ...]]:
    """The cost model of devices on which nothing can be measured from here; only the size of the file is known."""
    notes = [
        f"Latencies are {study.cost.origin}: nothing was measured on {study.budget.device}.",
        *study.cost.notes,
    ]
    notes += [
        f"Assumed of '{cost.device}': {'; '.join(cost.assumed)}." for cost in study.cost.costs if cost.assumed
    ]
    if study.budget.dtype != "float32":
        notes.append(
            f"Costs are those of {study.budget.dtype}; the exported file is float32 and still to be converted."
        )
    return *_scaled(study, None), tuple(notes)


def _scaled(study: Study, latency_ms: float | None) -> tuple[Study, dict[str, float]]:
    """The cost model scaled to what is known of the whole network, and the limits that follow from it."""
    known = {"size_bytes": float(study.exported.size_bytes)} if study.budget.dtype == "float32" else {}
    study = study.anchored(latency_ms, _bytes_when_repaired(study) if known else None)
    return study, limits_for(study.budget, study.cost, study.dense_costs() | known)


def _bytes_when_repaired(study: Study) -> float:
    """Size of the whole network's file, were no parameter all zero nor like another: the exporter leaves out the former
    and keeps the latter once (networks that were never trained have both), and repair makes them differ."""
    apart = told_apart(state_of(study.model))
    if study.budget.size_bytes is None or is_keras(study.model) or not apart:
        return study.exported.size_bytes
    changed = twin(study.model, {**state_of(study.model), **apart})
    with TemporaryDirectory() as folder:
        return export_onnx(changed, study.example, Path(folder) / DENSE).size_bytes


def told_apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters that are all zero or like an earlier one, each with other numbers."""
    generator = torch.Generator().manual_seed(0)
    met: set[int] = set()
    values: set[tuple[Any, ...]] = set()
    changed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, nn.Parameter) or id(tensor) in met:
            continue
        held = tensor.detach().cpu()
        value = held.shape, held.dtype, hash(held.flatten().view(torch.uint8).numpy().tobytes())
        if value in values or not held.any():
            noise = torch.rand(held.shape, generator=generator).add(1).mul(1e-3)
            changed[name] = tensor.detach() + noise.to(tensor)
        met.add(id(tensor))
        values.add(value)
    return changed


def once(study: Study, name: str, measured: Callable[[], float], *asked: str) -> float:
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


def keep(study: Study, found: Found, model: nn.Module | None = None) -> None:
    """Write down the best so far, for who stops the run, and the whole network beside it; a model of another plan, of
    another network or of another run goes, and with a model what was made of it."""
    file, plan, own = study.folder / "plan.json", found.plan.to_json(), MODELS[is_keras(study.model)]
    parts = _parts_aside(study.folder)
    same = not parts and file.is_file() and file.read_text(encoding="utf-8") == plan
    old = [name for name in MODELS if name != own or not same]
    for name in old if same and model is None else (*old, *LAST):
        (study.folder / name).unlink(missing_ok=True)
    if parts:
        file.unlink(missing_ok=True)
        with staged_path(study.folder / DENSE) as staged:
            for part in parts:
                part.replace(staged.with_name(part.name))
    atomic_write_text(file, plan)
    if model is not None:
        save(model, study.folder / own)


def _parts_aside(folder: Path) -> list[Path]:
    """Files of the whole network as long as the output folder holds none or another; empty where it lies there."""
    parts = sorted((folder / ASIDE).glob("*"))
    placed = [folder / part.name for part in parts]
    alike = all(map(Path.is_file, placed)) and all(map(partial(cmp, shallow=False), parts, placed))
    return [] if alike else parts


def measure(
    study: Study, after: Exported | None = None, runs: int = 60, clock: Clock | None = None
) -> dict[str, Latency]:
    """Latencies of the whole network ("before") and of another one's file ("after"), interleaved, at the threads of the
    budget and at its batch, or at the only one that a file takes.

    While searching, other programs on the machine are no part of a network's time, as far as the system can tell them
    apart; what the report shows is of the wall.
    """
    written = [study.exported] if after is None else [study.exported, after]
    files = dict(zip(("before", "after"), [study.dense, *(file.path for file in written[1:])], strict=False))
    fixed = [file.batch for file in written if not file.dynamic_batch]
    batch, threads = min(fixed, default=batch_of(study.graph, study.budget.batch)), study.budget.threads
    return measure_onnx(
        files,
        feeds(study.exported, study.example, batch=batch),
        threads=threads,
        runs=runs,
        max_seconds=SEARCHED_SECONDS if study.budget.latency_ms is not None else TOLD_SECONDS,
        clock=clock or processor_clock(threads),
        progress=study.progress,
    )


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add what the block takes to the seconds of a stage; what it leaves of memory is given back."""
    start = time.perf_counter()
    try:
        yield
    finally:
        trim()
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
