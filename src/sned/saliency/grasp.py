"""What a unit does for the flow of gradients: for networks that are yet to be trained.

`importance(u) = sum over the weights w of u of  w (H g)_w`, with `g` the gradient of the mean loss over the
inputs and `H` its Hessian: to first order, half of what the squared length of the gradient loses when the
unit goes. Units without which it would grow (less than zero) go first, and cost nothing.

Reference: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow (GraSP), 2020,
equation 8, whose score `-w (H g)` is the larger the less a weight matters; there of single weights, with
logits divided by 200 and in training mode, here summed over all that leave with a unit, with logits as they
are and in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sned.errors import UserError
from sned.saliency.gradients import derived, losses, mean, mean_gradient
from sned.saliency.registry import Evidence, State, criterion
from sned.saliency.scores import Scores, from_importance
from sned.saliency.units import owned


@criterion("grasp", "what a unit does for the flow of gradients (GraSP)", calibrated=True, labelled=True)
def grasp(evidence: Evidence) -> Scores:
    """Units without which gradients flow best go first.

    Raises:
        CalibrationError: there is no calibration.
        UserError: the network holds an op that PyTorch cannot differentiate twice.
    """
    graph, state = evidence.graph, evidence.state
    curved = mean(_hessian_products(evidence, mean_gradient(evidence)))
    flow = {name: state[name].detach() * value for name, value in curved.items()}
    return from_importance("grasp", graph, {g.name: owned(g, flow) for g in graph.groups})


def _hessian_products(evidence: Evidence, vector: State) -> Iterator[dict[str, torch.Tensor]]:
    """For each batch the Hessian of its mean loss times a vector."""
    for loss, leaves in losses(evidence):
        try:
            with torch.enable_grad():
                first = derived(loss, leaves, again=True)
                along = torch.stack([(first[name] * vector[name]).sum() for name in leaves]).sum()
            yield derived(along, leaves)
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            raise UserError(
                f"GraSP differentiates the loss twice, which PyTorch cannot do here: {error} Use 'snip', which "
                "needs first derivatives only."
            ) from error
