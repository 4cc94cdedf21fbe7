"""What cuts do to the network's answers, for all groups at once.

Where the loss of units is felt by the consumers that read them and by nothing else, a cut changes only what these give:
how far that moves the answers follows from one gradient an input (`calibration/curvature.py`). The other groups are cut
for real, each for itself (`sensitivity.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sned.calibration import Consumer
from sned.calibration.curvature import Change, Changes, affordable, divergences
from sned.calibration.moments import WIDEST
from sned.graph.ir import Graph, Group
from sned.saliency.mending import mended
from sned.saliency.reconstruction import normalised
from sned.saliency.registry import Evidence, State
from sned.saliency.scores import Scores, least_important
from sned.saliency.sensitivity import POINTS, Sensitivity, counts_at
from sned.saliency.touched import along


def curvatures(
    evidence: Evidence, scores: Scores, *, points: Sequence[float] = POINTS, inputs: int | None = None
) -> dict[str, Sensitivity]:
    """How far the answers move when each group alone is cut at some points of its order and mended.

    Args:
        evidence: with a calibration.
        scores: say which units go.
        points: fractions of the units of a group, in (0, 1).
        inputs: how many calibration inputs answer, at least 1; as many as time allows, 32 to 1,024, when None.

    Returns:
        `{group: Sensitivity}` of those groups that their readers alone feel (`read_alone`), or of none where PyTorch
        cannot derive the answers.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    groups = read_alone(graph, calibration.consumers)
    counts = {group.name: counts_at(group, points) for group in groups}
    count = affordable(graph, calibration, len(points)) if inputs is None else min(inputs, calibration.count)
    slot = calibration.resume.slot("curvatures", counts, scores.order, count)
    found = {name: values.numpy() for name, values in slot.found.items()}
    if groups and not found:
        cuts = [(group, removed) for group in groups for removed in counts[group.name]]
        with evidence.progress.task("sensitivities", total=len(cuts) + count) as advance:
            moved = divergences(
                graph, evidence.state, calibration, (_changes(evidence, scores, *cut) for cut in cuts), count,
                seed=evidence.seed, advance=advance,
            )  # fmt: skip
        if moved is None:
            return {}
        of = [group.name for group, _ in cuts]
        found = {name: moved[[at for at, cut in enumerate(of) if cut == name]] for name in counts}
        slot.close(lambda: {name: torch.from_numpy(values) for name, values in found.items()})
    return {name: Sensitivity(counts[name], values) for name, values in found.items()}


def read_alone(graph: Graph, consumers: Sequence[Consumer]) -> list[Group]:
    """The groups whose loss is felt by the consumers that read them and by nothing else: removing units equals setting
    them to zero, and wherever their axis ends, it ends in a consumer whose weights can answer for them."""
    readers: dict[int, set[int]] = {}
    unable: set[int] = set()
    for consumer in consumers:
        of = {read.group for read in consumer.reads}
        if consumer.kind != "depthwise":
            for group in of:
                readers.setdefault(group, set()).add(consumer.op)
            if consumer.shared or consumer.width > WIDEST:
                unable |= of
    ends = _ends(graph)
    return [
        group
        for group in graph.groups
        if group.exact
        and group.index not in unable
        and readers.get(group.index, set()) == ends.get(group.index, set()) != set()
    ]


def _ends(graph: Graph) -> dict[int, set[int]]:
    """For each group the ops that read an axis of it and make nothing that has one."""
    ends: dict[int, set[int]] = {}
    for op in graph.ops:
        read = set().union(*(along(graph, number) for number in op.inputs))
        made = set().union(*(along(graph, number) for number in op.outputs if number is not None))
        for group in read - made:
            ends.setdefault(group, set()).add(op.index)
    return ends


def _changes(evidence: Evidence, scores: Scores, group: Group, removed: int) -> Changes:
    """What the readers of a group compute with when so many of its units are gone."""
    gone = {group.index: least_important(group, scores.order[group.name], removed).tolist()}
    new = mended(evidence.graph, gone, evidence.learnt, evidence.state, of=gone)
    return {
        consumer.op: Change(new[consumer.weight], _shift(evidence, consumer, new))
        for consumer in evidence.learnt.consumers
        if consumer.weight in new
    }


def _shift(evidence: Evidence, consumer: Consumer, new: State) -> Tensor | None:
    """What a new bias, or a new mean that a normalisation takes off, adds to an output."""
    old = evidence.state
    if consumer.bias is not None:
        return new[consumer.bias] - old[consumer.bias].detach() if consumer.bias in new else None
    means = normalised(evidence.graph).get(consumer.output, ())
    return next((old[name].detach() - new[name] for name in means if name in new), None)
