"""What the loss would change by, to second order with a diagonal Hessian, if a unit's weights were zero.

`importance(u) = sum over the weights w of u of  w^2 E[(dL/dw)^2] / 2`: the Hessian is estimated by the
squares of the gradients of batches. Not scaled by layer: it is in the unit of the loss, the same everywhere.

Reference: LeCun et al., Optimal Brain Damage, 1990, equation 5; Theis et al., Faster gaze prediction with
dense networks and Fisher pruning, 2018, equation 6 (there from single inputs, here from batches).
"""

from __future__ import annotations

import numpy as np

from sned.saliency.gradients import gradients
from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import Scores, from_importance
from sned.saliency.units import owned


@criterion(
    "fisher",
    "second-order change of the loss without a unit (diagonal Fisher)",
    calibrated=True,
    labelled=True,
)
def fisher(evidence: Evidence) -> Scores:
    """Units without which the loss changes least, to second order, go first.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, state = evidence.graph, evidence.state
    total = {group.name: np.zeros(group.size) for group in graph.groups}
    batches = 0
    for found in gradients(evidence):
        batches += 1
        squared = {name: (state[name].detach() * g).square() for name, g in found.items()}
        for group in graph.groups:
            total[group.name] += owned(group, squared)
    return from_importance(
        "fisher", graph, {name: value / (2 * max(batches, 1)) for name, value in total.items()}
    )
