"""Filters near the geometric median of their layer go first: what they compute, the others nearly do as well.

`importance(u) = sum over v of |F_u - F_v|_2` with `F_u` the flattened filter; 1 on average in every group.

Reference: He et al., Filter Pruning via Geometric Median (FPGM), 2019, equation 7.
"""

from __future__ import annotations

import torch

from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import Scores, from_importance, mean_one
from sned.saliency.units import matrix


@criterion("geometric-median", "distance of a unit's filter to the others (FPGM)", relative=True)
def geometric_median(evidence: Evidence) -> Scores:
    """Units whose filters are the most replaceable go first."""
    graph, state = evidence.graph, evidence.state
    importance = {}
    for group in graph.groups:
        filters = matrix(graph, group, state)
        importance[group.name] = mean_one(torch.cdist(filters, filters).sum(dim=1).cpu().numpy())
    return from_importance("geometric-median", graph, importance)
