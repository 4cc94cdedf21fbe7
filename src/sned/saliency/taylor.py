"""What the loss would change by, to first order, if a unit's weights were zero.

`importance(u) = mean over batches of  (sum over the weights w of u of  w dL/dw)^2`, 1 on average in every
group.

Reference: Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, equation 8, over all
weights that leave with a unit.
"""

from __future__ import annotations

import numpy as np

from sned.saliency.gradients import gradients
from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import Scores, from_importance, mean_one
from sned.saliency.units import owned


@criterion(
    "taylor", "first-order change of the loss without a unit", calibrated=True, labelled=True, relative=True
)
def taylor(evidence: Evidence) -> Scores:
    """Units without which the loss changes least, to first order, go first.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, state = evidence.graph, evidence.state
    total = {group.name: np.zeros(group.size) for group in graph.groups}
    for found in gradients(evidence):
        change = {name: state[name].detach() * g for name, g in found.items()}
        for group in graph.groups:
            total[group.name] += np.square(owned(group, change))
    return from_importance("taylor", graph, {name: mean_one(value) for name, value in total.items()})
