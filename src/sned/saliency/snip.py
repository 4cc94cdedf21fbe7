"""How strongly the loss feels each connection: for networks that are yet to be trained.

`importance(u) = sum over the weights w of u of  |w dL/dw|  /  the same sum over all weights`, the gradient
being that of the mean loss over the inputs. Not scaled by layer: it is a share of the whole, the same
everywhere.

Reference: Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019, equation 5;
there of single weights, here summed over all that leave with a unit; there in training mode, here in
evaluation mode.
"""

from __future__ import annotations

from sned.saliency.gradients import mean_gradient
from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import Scores, from_importance
from sned.saliency.units import owned


@criterion("snip", "how strongly the loss feels a unit's connections (SNIP)", calibrated=True, labelled=True)
def snip(evidence: Evidence) -> Scores:
    """Units whose connections the loss feels least go first.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, state = evidence.graph, evidence.state
    felt = {name: (state[name].detach() * g).abs() for name, g in mean_gradient(evidence).items()}
    whole = sum(float(value.double().sum()) for value in felt.values()) or 1.0
    return from_importance("snip", graph, {g.name: owned(g, felt) / whole for g in graph.groups})
