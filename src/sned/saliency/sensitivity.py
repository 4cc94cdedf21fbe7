"""What a cut does to the network's answers, without labels.

A criterion's error curve says how well a layer's own output survives, which tells little of how much that output
matters. So each group alone is cut at a few points of its curve, mended by least squares, and the network is run on
some calibration inputs from there on; how far its answers move is what the curve is scaled to. Between two points the
curve is bent, linearly in the logarithms of both; below the first it is proportional.

Answers `[n, classes]` are compared as distributions: `KL(softmax(dense / T) || softmax(cut / T))` with T the root mean
square of the dense answers around their mean over classes. Trained networks are so sure of themselves that at T = 1
most cuts seem to do nothing. Others are compared by mean squared error relative to the variance; both are about half
the relative error for small changes.

Reference: the divergence at a temperature is that of Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch.nn.functional import kl_div, log_softmax

from sned.graph.example import Inputs, arguments, tensors_in
from sned.graph.ir import Group, Op
from sned.graph.replay import Replay
from sned.saliency.mending import mended
from sned.saliency.registry import Evidence
from sned.saliency.scores import FloatArray, Scores, least_important
from sned.saliency.suffix import Suffix

POINTS = (0.25, 0.5, 0.75)
"""Fractions of a group's units at which it is cut."""

INPUTS = 64
"""Calibration inputs that the cut networks answer."""

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
    inputs: int = INPUTS,
    repair: bool = True,
) -> dict[str, Sensitivity]:
    """Cut each group alone at some points of its order, and see how far the network's answers move.

    Args:
        evidence: with a calibration.
        scores: say which units go.
        points: fractions of the units of a group, in (0, 1).
        inputs: how many calibration inputs answer, at least 1.
        repair: mend the consumers of the cut group by least squares on the dense moments.

    Returns:
        `{group: Sensitivity}`.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    count = min(inputs, calibration.count)
    if not graph.batched:
        count -= count % graph.batch
    removed = {group.name: _counts(group, points) for group in graph.groups}
    measured = {name: np.zeros(len(counts)) for name, counts in removed.items()}
    dense = Replay(graph, evidence.state)
    scale = _scales(calibration.outputs(0, count))
    batches = list(calibration.batches(0, count))
    total = len(batches) * sum(len(counts) for counts in removed.values())
    with evidence.progress.task("sensitivities", total=total) as advance, torch.no_grad():
        by_start: dict[int, list[tuple[Group, int, Suffix]]] = {}
        for group in graph.groups:
            for at, number in enumerate(removed[group.name]):
                ...
    return {name: Sensitivity(removed[name], measured[name]) for name in removed}
