"""Repair a pruned network without labels or gradients, and decide on inputs held out what helped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sned.calibration import Calibration
from sned.calibration.answers import joined
from sned.calibration.divergence import Divergence, divergence
from sned.calibration.patches import whole_batches
from sned.errors import CalibrationError, SurgeryError
from sned.graph.ir import Graph
from sned.graph.plan import Plan, check_fits
from sned.graph.replay import Replay, State, slice_state
from sned.progress import SILENT, Progress
from sned.repair.batchnorm import blended, reestimate
from sned.repair.following import norms
from sned.repair.reconstruct import STANDARD, Options, Solved, reconstruct
from sned.saliency.mending import together
from sned.surgery.masks import with_masks_of

HELD_OUT = 0.2
"""Share of the calibration inputs that decide and are not fitted to."""

FEWEST_HELD_OUT = 4
"""Fewer inputs than this decide nothing: then all are used for both, and the report says so."""

SHARES = (0.5, 1.0)
"""How far running statistics are moved towards re-estimated ones after least squares, beside not at all."""

STATISTICS_INPUTS, JUDGED_INPUTS = (32, 512), (32, 2**20)
"""Inputs that BatchNorm statistics are re-estimated from, and that decide: as many as `MACS` go, within these
bounds."""

MACS = 1.3e11
"""Multiply-accumulates of the dense network on them: some seconds."""

MARGIN = 0.05
"""How much closer moved statistics must be than least squares alone: on few inputs less is chance."""

NAMED = 4
"""Weights that a note names."""

PLAIN = "as cut"
SOLVED = "least squares"


@dataclass(frozen=True)
class Candidate:
    """One way to repair, and how far its answers on held-out inputs are from the dense network's."""

    name: str
    divergence: Divergence


@dataclass(frozen=True)
class RepairReport:
    """What was tried and what was chosen.

    Attributes:
        chosen: name of the candidate that the state returned is of.
        candidates: all that were tried, the cut network as it is among them.
        consumers: what least squares did to each consumer (empty where it was not tried).
        fitted, judged: how many inputs were fitted to, and how many decided.
        notes: sentences for the user: what was left out and why, and what to be careful about.
    """

    chosen: str
    candidates: tuple[Candidate, ...]
    consumers: tuple[Solved, ...] = field(repr=False)
    fitted: int
    judged: int
    notes: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What was chosen, in a sentence for a report, and what to be careful about."""
        tried = f"the best of {len(self.candidates)} on {self.judged} inputs"
        change = f"{self.before.key:.3g} before, {self.after.key:.3g} after"
        return " ".join((f"Repair: {self.chosen}, {tried} (divergence {change}).", *self.notes))

    @property
    def before(self) -> Divergence:
        """Of the network as it was cut."""
        return next(c.divergence for c in self.candidates if c.name == PLAIN)

    @property
    def after(self) -> Divergence:
        """Of the network that was chosen."""
        return next(c.divergence for c in self.candidates if c.name == self.chosen)


def repair(
    graph: Graph,
    state: State,
    plan: Plan,
    calibration: Calibration,
    *,
    whole: Replay | None = None,
    options: Options = STANDARD,
    progress: Progress = SILENT,
    workdir: Path | None = None,
) -> tuple[dict[str, Tensor], RepairReport]:
    """Give the weights that remain the values that best answer for what was removed. No labels, no gradients.

    Tried are: the network as it was cut, re-estimated BatchNorm statistics, sequential least squares of every
    consumer, and least squares with statistics moved half or all of the way. The one whose answers to
    held-out calibration inputs are closest to the dense network's is returned, so the result is never worse
    than the cut network there. Zeros that masks hold, of the dense network or of the plan, stay zeros.

    Args:
        graph: what `sned.trace` made of the dense network.
        state: its parameters and buffers by name.
        plan: what is removed.
        calibration: of the dense network (`calibrate`).
        whole: the network to answer like, where layers were left out of it to make the dense one; else that one.
        options: of the least squares.
        progress: shown while it runs.
        workdir: where activations are spooled to when they are many; a temporary folder when None.

    Returns:
        Parameters and buffers of the pruned network by name (`load_state` puts them in), and the report.

    Raises:
        PlanError: the plan was made for another network.
        CalibrationError: the calibration was.
    """
    check_fits(plan, graph)
    if calibration.fingerprint != graph.fingerprint:
        raise CalibrationError(
            "Repair needs the calibration of the very network that is pruned, but this one was made for "
            "another. "
            "Run `calibrate` with this graph."
        )
    plan = with_masks_of(graph.model, plan)
    start = held_out(calibration, graph)
    fitted = start or calibration.count
    judge = Judge(graph, plan, calibration, start, whole)
    cut = {name: t.detach() for name, t in slice_state(state, plan).items() if name not in graph.aliases}
    solved, consumers = reconstruct(
        graph,
        state,
        plan,
        calibration,
        whole=whole,
        count=fitted,
        options=options,
        progress=progress,
        workdir=workdir,
    )
    solved = {name: t for name, t in solved.items() if name not in graph.aliases}
    tried = list(_candidates(graph, plan, calibration, fitted, cut, solved))
    with progress.task("judging repairs", total=len(tried)) as advance:
        judged = []
        for name, candidate in tried:
            judged.append(Candidate(name, judge(candidate)))
            advance(1)
    chosen = _best(judged)
    notes = _notes(graph, calibration, consumers, fitted, start)
    report = RepairReport(
        chosen=chosen,
        candidates=tuple(judged),
        consumers=consumers,
        fitted=fitted,
        judged=judge.count,
        notes=notes,
    )
    return dict(tried)[chosen], report


def _best(judged: Sequence[Candidate]) -> str:
    """The closest one, or least squares alone where that is as close but for chance."""
    best = min(judged, key=lambda candidate: candidate.divergence.key)
    solved = next(candidate for candidate in judged if candidate.name == SOLVED)
    cut = next(candidate for candidate in judged if candidate.name == PLAIN)
    near = solved.divergence.key <= best.divergence.key * (1 + MARGIN)
    return SOLVED if near and best is not cut else best.name


def held_out(calibration: Calibration, graph: Graph) -> int:
    """The first of the inputs that decide, which are not fitted to; 0 where these are too few for that."""
    return first_held_out(calibration.count, 1 if graph.batched else graph.batch)


def first_held_out(count: int, size: int) -> int:
    """The same of `count` inputs in batches of `size`."""
    held = int(count * HELD_OUT) // size * size
    return count - held if held >= max(FEWEST_HELD_OUT, size) else 0


def _candidates(
    graph: Graph,
    plan: Plan,
    calibration: Calibration,
    fitted: int,
    cut: dict[str, Tensor],
    solved: dict[str, Tensor],
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield PLAIN, cut
    yield SOLVED, solved
    # What noise does to the statistics says nothing about real inputs.
    if not norms(graph) or calibration.synthetic:
        return
    seen = statistics_inputs(graph, calibration, fitted)
    yield (
        "BatchNorm re-estimated",
        blended(cut, reestimate(graph, cut, calibration.batches(0, seen), plan), 1.0),
    )
    statistics = reestimate(graph, solved, calibration.batches(0, seen), plan)
    for share in SHARES:
        yield f"least squares, BatchNorm moved {share:.0%}", blended(solved, statistics, share)


def statistics_inputs(graph: Graph, calibration: Calibration, fitted: int) -> int:
    """How many inputs to re-estimate BatchNorm statistics from, of those that are fitted to."""
    return whole_batches(graph, min(fitted, calibration.within(MACS, *STATISTICS_INPUTS)))


class Judge:
    """Compares a candidate with the dense network, or with the whole one, on the inputs held out."""

    def __init__(
        self, graph: Graph, plan: Plan, calibration: Calibration, start: int, whole: Replay | None = None
    ) -> None:
        self._graph = graph
        self._plan = plan
        self._calibration = calibration
        able = whole_batches(graph, calibration.within(MACS, *JUDGED_INPUTS))
        self._range = start, min(start + able, calibration.count)
        self._dense = calibration.outputs(*self._range) if whole is None else self._answers(whole)

    @property
    def count(self) -> int:
        """How many inputs decide."""
        return self._range[1] - self._range[0]

    def __call__(self, candidate: State) -> Divergence:
        return divergence(self._dense, self._answers(Replay(self._graph, candidate, self._plan, cut=True)))

    def _answers(self, replay: Replay) -> list[Tensor]:
        with torch.no_grad():
            runs = [replay.run(inputs)[0] for inputs in self._calibration.batches(*self._range)]
        return joined(replay.graph, runs)


def _notes(
    graph: Graph, calibration: Calibration, consumers: tuple[Solved, ...], fitted: int, start: int
) -> tuple[str, ...]:
    notes = []
    solved = {s.weight for s in consumers} | {c.weight for c, *_ in together(graph, calibration.consumers)}
    left = {c.weight: None for c in calibration.consumers if c.weight not in solved}
    if left:
        notes.append(
            "Not solved for, because other kinds of ops read it too, it is too wide, or values pick its rows: "
            f"{few_of(left)}."
        )
    if start == 0:
        notes.append(
            f"Only {fitted} calibration inputs: they were fitted to and decided as well. Give more than 20."
        )
    few = [s.name for s in consumers if s.patches < 2 * s.width]
    if few:
        notes.append(
            f"Few patches for {len(few)} layer{'s' * (len(few) > 1)} ({few[0]} first): they stay closer to their old "
            "weights."
        )
    if calibration.synthetic:
        notes.append("Repaired on random inputs: give real ones to `calibration` for a better result.")
    return tuple(notes)


def few_of(names: Collection[str]) -> str:
    """The first few of many names, and how many more there are."""
    first = list(names)[:NAMED]
    return ", ".join(first) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def load_state(model: nn.Module, state: State) -> None:
    """Put repaired parameters and buffers into a pruned network, in place; names that `state` lacks stay.

    Raises:
        SurgeryError: a tensor has another shape: the network was pruned by another plan.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in held.keys() & state.keys():
        if held[name].shape != state[name].shape:
            raise SurgeryError(
                f"Repaired weights fit the network that their plan made, but '{name}' has shape "
                f"{list(held[name].shape)} there and {list(state[name].shape)} in the state. Nothing was "
                f"changed."
            )
    with torch.no_grad():
        for name in held.keys() & state.keys():
            held[name].copy_(state[name])
