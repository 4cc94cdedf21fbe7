"""Any order is as good as another: what every criterion must beat."""

from __future__ import annotations

import numpy as np

from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import Scores, from_importance, mean_one


@criterion("random", "in random order: what every other criterion must beat", relative=True)
def random(evidence: Evidence) -> Scores:
    """Uniform draws, 1 on average in every group, from `evidence.seed`."""
    rng = np.random.default_rng(evidence.seed)
    importance = {group.name: mean_one(rng.random(group.size)) for group in evidence.graph.groups}
    return from_importance("random", evidence.graph, importance)
