"""Magnitude, judged by what would be left: comparable across layers without choosing a sparsity for each.

`importance(u) = |W_u|^2 / sum over v with |W_v| >= |W_u| of |W_v|^2`: 1 for the largest unit of a layer, so
no layer is emptied before another.

Reference: Lee et al., Layer-Adaptive Sparsity for the Magnitude-based Pruning (LAMP), 2021, equation 4; there
of single weights, here of units, with the normalised sum over all weights that leave with one
(`magnitude.py`).
"""

from __future__ import annotations

import numpy as np

from sned.saliency.magnitude import magnitudes
from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import FloatArray, Scores, from_importance


def relative_to_larger(squared: FloatArray) -> FloatArray:
    """`[size]`: each value over the sum of itself and all larger ones; 0 where everything is 0."""
    order = np.argsort(squared, kind="stable")
    left = np.cumsum(squared[order][::-1])[::-1]
    result = np.zeros_like(squared)
    result[order] = np.divide(squared[order], left, out=np.zeros_like(left), where=left > 0)
    return result


@criterion("lamp", "magnitude relative to what would be left of the layer")
def lamp(evidence: Evidence) -> Scores:
    """Units with the smallest LAMP score go first."""
    graph = evidence.graph
    importance = {
        name: relative_to_larger(found) for name, found in magnitudes(graph, evidence.state, 2).items()
    }
    return from_importance("lamp", graph, importance)
