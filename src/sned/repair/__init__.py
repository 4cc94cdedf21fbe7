"""Make the weights that remain answer for what was removed, from unlabelled inputs and without gradients.

In: a graph, the dense state, a plan, a calibration. Out: the state of the pruned network, and a report of
    what helped.
"""

from sned.repair.batchnorm import blended, reestimate
from sned.repair.glance import glance
from sned.repair.match import Matched, match
from sned.repair.reconstruct import Options, Solved, reconstruct
from sned.repair.repair import Candidate, RepairReport, load_state, repair
from sned.repair.sparsify import Sparse, sparsify
from sned.repair.thin import Thinned, thin

__all__ = [
    "Candidate",
    "Matched",
    "Options",
    "RepairReport",
    "Solved",
    "Sparse",
    "Thinned",
    "blended",
    "glance",
    "load_state",
    "match",
    "reconstruct",
    "reestimate",
    "repair",
    "sparsify",
    "thin",
]
