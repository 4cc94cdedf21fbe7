"""Which units matter.

In: a graph, its weights, and (for some criteria) what calibration taught. Out: `Scores`: for every group the
order in which its units should go, and what going so far costs; and `Sensitivity`, what that does to the
network's answers.
"""

from sned.saliency import (
    batchnorm,
    fisher,
    geometric_median,
    grasp,
    lamp,
    magnitude,
    random,
    reconstruction,
    snip,
    synflow,
    taylor,
    wanda,
    zeros,
)
from sned.saliency.curvature import curvatures, read_alone
from sned.saliency.registry import CRITERIA, Criterion, Evidence, criterion_named, score
from sned.saliency.scores import Scores, from_importance, least_important
from sned.saliency.sensitivity import Sensitivity, sensitivities, weighed

__all__ = [
    "CRITERIA",
    "Criterion",
    "Evidence",
    "Scores",
    "Sensitivity",
    "batchnorm",
    "criterion_named",
    "curvatures",
    "fisher",
    "from_importance",
    "geometric_median",
    "grasp",
    "lamp",
    "least_important",
    "magnitude",
    "random",
    "read_alone",
    "reconstruction",
    "score",
    "sensitivities",
    "snip",
    "synflow",
    "taylor",
    "wanda",
    "weighed",
    "zeros",
]
