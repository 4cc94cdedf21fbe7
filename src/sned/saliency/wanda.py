"""Weights times the activations that they meet: what a consumer loses with a unit, if nothing is mended.

`importance(u) = mean over consumers of  sum over entries i of u of  E[x_i^2] |W_i|^2`, divided by its mean
over units, with `W_i` the column of the consumer that reads entry i of its patch.

Reference: Sun et al., A Simple and Effective Pruning Approach for Large Language Models (Wanda), 2024,
equation 1; there `|W_ij| |x_j|` of single weights compared within an output, here squared and summed over
everything that reads a unit.
"""

from __future__ import annotations

import numpy as np
import torch

from sned.calibration import Calibration
from sned.graph.ir import Graph, Group
from sned.saliency.magnitude import magnitude
from sned.saliency.reconstruction import consumers_of, matrices, unread_note
from sned.saliency.registry import Evidence, State, criterion
from sned.saliency.scores import FloatArray, Scores, from_importance, mean_one


@criterion("wanda", "weights times the activations that they meet", calibrated=True, relative=True)
def wanda(evidence: Evidence) -> Scores:
    """Units that feed the least into the layers that read them go first.

    Groups that no consumer reads fall back to L2 magnitude, and the scores say so.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, state, calibration = evidence.graph, evidence.state, evidence.learnt
    found = {group.name: _fed(graph, group, calibration, state) for group in graph.groups}
    unread = [name for name, importance in found.items() if importance is None]
    importance = {
        group.name: magnitude(graph, group, state, 2) if fed is None else fed
        for group, fed in zip(graph.groups, found.values(), strict=True)
    }
    return from_importance("wanda", graph, importance, unread_note(graph, unread))


def _fed(graph: Graph, group: Group, calibration: Calibration, state: State) -> FloatArray | None:
    each = []
    for consumer, rows in consumers_of(group, calibration.consumers):
        weight = matrices(graph, consumer, state).square().sum(dim=1)
        loss = (weight * calibration.moments[consumer.op].diagonal.double()).flatten()
        each.append(mean_one(loss[torch.from_numpy(rows)].sum(dim=1).cpu().numpy()))
    return mean_one(np.mean(each, axis=0)) if each else None
