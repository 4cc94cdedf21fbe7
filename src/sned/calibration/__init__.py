"""What a few hundred inputs teach: what enters each consumer, and what the dense network answers.

In: a graph, a state, an iterator over inputs (no labels). Out: a `Calibration` (second moments of the patches
that enter each consumer, the inputs, the dense outputs), and the solvers over such moments.
"""

from sned.calibration.calibrate import Calibration, calibrate, synthetic_batches
from sned.calibration.consumers import Consumer, Geometry, Read, consumers
from sned.calibration.divergence import Divergence, divergence
from sned.calibration.moments import Moment
from sned.calibration.removal import Problem, Removal, greedy_removal
from sned.calibration.resume import Resume
from sned.calibration.solver import Fit, kept_error, least_squares

__all__ = [
    "Calibration",
    "Consumer",
    "Divergence",
    "Fit",
    "Geometry",
    "Moment",
    "Problem",
    "Read",
    "Removal",
    "Resume",
    "calibrate",
    "consumers",
    "divergence",
    "greedy_removal",
    "kept_error",
    "least_squares",
    "synthetic_batches",
]
