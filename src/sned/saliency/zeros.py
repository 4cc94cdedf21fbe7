"""Units that are nearly always zero, in what they answer (APoZ) or in their weights, go first.

`apoz`: `importance(u) = share of the values that consumers read from u that are not zero`. After a ReLU that
is one minus the average percentage of zeros; where nothing is exactly zero all units count the same, and the
scores say so.

`near-zero`: `importance(u) = share of the weights of u above a hundredth of their tensor's root mean square`.

Reference: Hu et al., Network Trimming, 2016, equation 1.
"""

from __future__ import annotations

import numpy as np
import torch

from sned.calibration import Consumer
from sned.calibration.patches import whole_batches
from sned.graph.ir import Op
from sned.graph.replay import Replay
from sned.saliency.reconstruction import consumers_of
from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import FloatArray, Scores, from_importance
from sned.saliency.units import rows, weights

INPUTS = 256
"""Calibration inputs looked at."""

NEAR_ZERO = 0.01
"""Of a tensor's root mean square."""


@criterion("apoz", "how often a unit's answer is not zero (APoZ)", calibrated=True)
def apoz(evidence: Evidence) -> Scores:
    """Units that answer zero most often go first.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    alive = _nonzero(evidence, calibration.consumers)
    importance, same = {}, []
    for group in graph.groups:
        each = []
        for consumer, entries in consumers_of(group, calibration.consumers):
            part, entry = np.divmod(entries, consumer.width)
            channel = part * consumer.channels + entry // consumer.window
            each.append(alive[consumer.op][channel].mean(axis=1))
        importance[group.name] = np.mean(each, axis=0) if each else np.ones(group.size)
        if np.ptp(importance[group.name]) == 0:
            same.append(group.name)
    note = f"zeros tell nothing of {', '.join(same)}: no unit there is zero more often than another"
    return from_importance("apoz", graph, importance, (note,) if same else ())


@criterion("near-zero", "how many of a unit's weights are not nearly zero")
def near_zero(evidence: Evidence) -> Scores:
    """Units with the most weights near zero go first."""
    graph, importance = evidence.graph, {}
    for group in graph.groups:
        each = []
        for slices in weights(graph, group):
            tensor = evidence.state[slices.parameter].detach().double()
            least = NEAR_ZERO * float(tensor.square().mean().sqrt())
            each.append((rows(slices, tensor).abs() > least).double().mean(dim=1).cpu().numpy())
        importance[group.name] = np.mean(each, axis=0)
    return from_importance("near-zero", graph, importance)


def _nonzero(evidence: Evidence, consumers: tuple[Consumer, ...]) -> dict[int, FloatArray]:
    """For each consumer the share of values of each input channel that are not zero."""
    by_op = {consumer.op: consumer for consumer in consumers}
    sums: dict[int, torch.Tensor] = {}
    batches = 0

    def before(op: Op, live: dict[int, torch.Tensor]) -> None:
        consumer = by_op.get(op.index)
        if consumer is not None:
            x = live[consumer.input]
            share = (x != 0).double().mean(dim=[a for a in range(x.ndim) if a != consumer.axis])
            sums[op.index] = sums.get(op.index, torch.zeros_like(share)) + share

    replay = Replay(evidence.graph, evidence.state)
    count = whole_batches(evidence.graph, min(INPUTS, evidence.learnt.count))
    with torch.no_grad():
        for inputs in evidence.learnt.batches(0, count):
            replay.run(inputs, before=before)
            batches += 1
    return {op: (total / batches).cpu().numpy() for op, total in sums.items()}
