"""Which units matter.

In: a graph, its weights, and (for some criteria) what calibration taught. Out: `Scores`: for every group the
order in which its units should go, and what going so far costs.
"""

from sned.saliency import batchnorm, geometric_median, lamp, magnitude, random
from sned.saliency.registry import CRITERIA, Criterion, Evidence, score
from sned.saliency.scores import Scores, from_importance, least_important

__all__ = [
    "CRITERIA",
    "Criterion",
    "Evidence",
    "Scores",
    "batchnorm",
    "from_importance",
    "geometric_median",
    "lamp",
    "least_important",
    "magnitude",
    "random",
    "score",
]
