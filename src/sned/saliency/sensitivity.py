"""What a cut does to the network's answers, without labels.

A criterion's error curve says how well a layer's own output survives, which tells little of how much that
output matters. So each group alone is cut at a few points of its curve, mended by least squares, and the
network is run on some calibration inputs from there on; how far its answers move is what the curve is scaled
to. Between two points the curve is bent, linearly in the logarithms of both; below the first it is
proportional.

Answers `[n, classes]` are compared as distributions: `KL(softmax(dense / T) || softmax(cut / T))` with T the
root mean square of the dense answers around their mean over classes. Trained networks are so sure of
themselves that at T = 1 most cuts seem to do nothing. Others are compared by mean squared error relative to
the variance; both are about half the relative error for small changes.

Reference: the divergence at a temperature is that of Hinton et al., Distilling the Knowledge in a Neural
Network, 2015.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sned.calibration.answers import joined
from sned.calibration.curvature import HOPELESS
from sned.calibration.divergence import relative_error, softened
from sned.calibration.patches import inputs_within, macs_of, whole_batches
from sned.calibration.walk import Live, Walk
from sned.graph.example import batch_in
from sned.graph.ir import Group
from sned.graph.plan import Plan
from sned.memory import trim
from sned.progress import Advance
from sned.saliency.mending import mended
from sned.saliency.registry import Evidence, State
from sned.saliency.scores import FloatArray, Scores, least_important
from sned.saliency.touched import first_touched

POINTS = (0.25, 0.5, 0.75)
"""Fractions of a group's units at which it is cut."""

INPUTS = 256
"""Calibration inputs that the cut networks answer, where that takes no more than `MACS`."""

FEWEST_INPUTS = 4
"""Inputs that answer however large the network is."""

MACS = 1.0e12
"""Multiply-accumulates that all the cut networks may take together: some ten seconds on two cores."""

NOTHING = 1e-9
"""A divergence below this is rounding; it stands in for none, so that logarithms exist."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What cutting one group does to the answers.

    Attributes:
        removed: how many units went at each point, `[points]`, rising.
        divergence: how far the answers moved, `[points]`.
    """

    removed: tuple[int, ...]
    divergence: FloatArray = field(repr=False)


def sensitivities(
    evidence: Evidence,
    scores: Scores,
    *,
    points: Sequence[float] = POINTS,
    inputs: int | None = None,
    repair: bool = True,
    groups: Sequence[str] | None = None,
    around: Mapping[str, int] | None = None,
) -> dict[str, Sensitivity]:
    """Cut each group alone at some points of its order, and see how far the network's answers move.

    Args:
        evidence: with a calibration.
        scores: say which units go.
        points: fractions of the units of a group, in (0, 1).
        inputs: how many calibration inputs answer, at least 1; as many as `MACS` allows, 4 to 256, when None.
        repair: mend the consumers of what is cut by least squares on the dense moments.
        groups: which of them, by name; all when None.
        around: `{group: units already gone}`: what one group does to a network that has lost these, not to
            the whole one. Sensitivities of layers are not independent, so measure again where half of the way
            is gone.

    Returns:
        `{group: Sensitivity}`.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    asked = [group for group in graph.groups if groups is None or group.name in groups]
    counts = {group.name: counts_at(group, points) for group in asked}
    able = _affordable(evidence, counts) if inputs is None else inputs
    count = whole_batches(graph, min(able, calibration.count))
    gone = dict(sorted((around or {}).items()))
    slot = calibration.resume.slot("sensitivities", counts, scores.order, count, repair, gone)
    measured = {name: values.tolist() for name, values in slot.found.items()}
    left = [group for group in asked if group.name not in measured]
    total = sum(bool(around) + len(at) for at in counts.values())
    with evidence.progress.task("sensitivities", total=total) as advance, torch.no_grad():
        if measured:
            calibration.resume.resumed("sensitivities", len(measured), len(asked))
            advance(sum(map(len, measured.values())))
        if left:
            base = _Base(evidence, scores, gone, repair=repair)
            for name, values in _measured(evidence, base, left, counts, count, advance):
                measured[name] = values
                slot.offer(lambda: _tensors(measured))
            slot.close(lambda: _tensors(measured))
    return {name: _relative(counts[name], measured[name]) for name in counts}


def _affordable(evidence: Evidence, counts: Mapping[str, tuple[int, ...]]) -> int:
    """How many inputs may answer: each cut network runs from the first op that the cut touches."""
    graph, starts = evidence.graph, first_touched(evidence.graph)
    work = {c.op: macs_of(c, graph) for c in evidence.learnt.consumers}
    each = sum(
        len(counts[group.name]) * sum(macs for op, macs in work.items() if op >= starts[group.index])
        for group in graph.groups
        if group.name in counts
    )
    return inputs_within(MACS, each, FEWEST_INPUTS, INPUTS)


def _measured(
    evidence: Evidence,
    base: _Base,
    groups: Sequence[Group],
    counts: Mapping[str, tuple[int, ...]],
    count: int,
    advance: Advance,
) -> Iterator[tuple[str, list[float]]]:
    """For each group the divergences at its counts; ahead of them that of the base, where it is a cut one."""
    graph, calibration = evidence.graph, evidence.learnt
    answers = _Answers(calibration.outputs(0, count))
    batches = calibration.batches(0, count)
    runs = [_Run(base.walk.start(batch), batch_in(batch)) for batch in batches]
    starts = first_touched(graph)
    here = 0
    for group in sorted(groups, key=lambda g: starts[g.index]):
        start = starts[group.index]
        for run in runs:
            base.walk.advance(run.live, run.batch, here, start)
        here = start
        found = []
        # Around a cut network, what counts is how far from its answers with this group whole.
        for removed in (*([0] if base.cut else []), *counts[group.name]):
            cut = base.without(group, removed)
            found.append(
                answers.divergence(joined(graph, (cut.finished(run.live, run.batch, start) for run in runs)))
            )
            advance(1)
        trim()
        yield group.name, found


def _tensors(measured: Mapping[str, Sequence[float]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in measured.items()}


def weighed(scores: Scores, found: Mapping[str, Sensitivity]) -> Scores:
    """The scores with every error curve bent to the divergence that was measured along it.

    Args:
        scores: whose order stays.
        found: by `sensitivities` or `curvatures` on the same order; groups that it lacks stay as they are.

    Returns:
        Scores in the unit of the divergence, so that groups compare.
    """
    error = {
        name: bent(curve, found[name]) if name in found else curve for name, curve in scores.error.items()
    }
    suffix = ", weighed by sensitivity"
    return Scores(scores.criterion.removesuffix(suffix) + suffix, scores.order, error, scores.notes)


def bent(curve: FloatArray, measured: Sensitivity) -> FloatArray:
    """`[size + 1]`: a curve through the measured points, shaped between them as the given one is.

    Straight in the logarithms of both between points and beyond the last (at least proportional there),
    proportional to the given curve before the first.
    """
    at = np.array(measured.removed)
    floor = max(float(curve.max()) * 1e-12, np.finfo(float).tiny)
    x = np.log(np.maximum(curve, floor))
    y = np.log(np.maximum.accumulate(np.maximum(measured.divergence, NOTHING)))
    known = x[at]
    if len(at) == 0 or known[-1] <= np.log(floor):
        return curve.copy()
    steps = np.diff(y) / np.maximum(np.diff(known), 1e-9)
    last = max(1.0, float(steps[-1])) if len(steps) else 1.0
    result = np.interp(x, known, y)
    result = np.where(x < known[0], y[0] + (x - known[0]), result)
    result = np.where(x > known[-1], y[-1] + last * (x - known[-1]), result)
    error = np.where(curve > floor, np.exp(result), 0.0)
    error[0] = 0.0
    return np.maximum.accumulate(error)


def counts_at(group: Group, points: Sequence[float]) -> tuple[int, ...]:
    """How many units go at each point: equally many of every cell, at least one, not all."""
    per_cell = {min(max(round(point * group.cell_size), 1), group.cell_size - 1) for point in points}
    return tuple(sorted(count * group.cell_count for count in per_cell))


@dataclass(frozen=True, eq=False)
class _Run:
    """One batch on its way through the dense network."""

    live: Live
    batch: int


class _Answers:
    """The dense network's outputs, to hold others against."""

    def __init__(self, dense: Sequence[torch.Tensor]) -> None:
        self._dense = dense

    def divergence(self, outputs: Sequence[torch.Tensor]) -> float:
        """How far the outputs of another network lie from these, summed over the network's outputs."""
        pairs = zip(self._dense, outputs, strict=True)
        return sum(divergence(a.double(), b.double()) for a, b in pairs if a.is_floating_point())


def divergence(dense: torch.Tensor, other: torch.Tensor) -> float:
    """How far answers moved: see the head of this file; 0 where nothing did, never negative.

    Args:
        dense: `[n, ...]`, of the dense network.
        other: of the same shape.
    """
    if dense.ndim == 2 and dense.shape[1] > 1:
        return softened(dense, other)
    return relative_error(dense, other) / 2


class _Base:
    """The network that single groups are cut from: the dense one, or what is left of it."""

    def __init__(
        self, evidence: Evidence, scores: Scores, around: Mapping[str, int], *, repair: bool
    ) -> None:
        self._evidence, self._scores, self._repair = evidence, scores, repair
        graph = evidence.graph
        self._gone = {
            graph.group(name).index: self._units(graph.group(name), n) for name, n in around.items()
        }
        self._state = {**evidence.state, **self._mended(self._gone, self._gone)}
        self.cut = bool(self._gone)
        self.walk = Walk(graph, self._state, self._plan(self._gone))

    def without(self, group: Group, count: int) -> Walk:
        """The network with `count` units of one group gone, whatever the base lost of it."""
        gone = {**self._gone, group.index: self._units(group, count)}
        state = {**self._state, **self._mended(gone, (group.index,))}
        return Walk(self._evidence.graph, state, self._plan(gone))

    def _units(self, group: Group, count: int) -> list[int]:
        return [int(unit) for unit in least_important(group, self._scores.order[group.name], count)]

    def _plan(self, gone: Mapping[int, Sequence[int]]) -> Plan:
        graph = self._evidence.graph
        return graph.plan({graph.groups[index].name: units for index, units in gone.items()})

    def _mended(self, gone: Mapping[int, Sequence[int]], of: Iterable[int]) -> State:
        evidence = self._evidence
        if not self._repair:
            return {}
        return mended(evidence.graph, gone, evidence.learnt, evidence.state, of=of)


def _relative(counts: tuple[int, ...], measured: Sequence[float]) -> Sensitivity:
    """Divergences from that of the whole group, which comes first where it was measured."""
    values = np.array(measured[-len(counts) :])
    whole = measured[0] if len(measured) > len(counts) else 0.0
    # A cut after which the network answers no numbers is as bad as can be, and still a number.
    moved = np.nan_to_num(values - whole, nan=HOPELESS, posinf=HOPELESS)
    return Sensitivity(counts, np.clip(moved, 0.0, HOPELESS))
