"""What a network gains and loses in fact: measured latency of exported files, and accuracy.

In: ONNX files, or networks and inputs. Out: `Latency` in milliseconds, and fractions of agreement.
"""

from sned.measure.accuracy import agreement, evaluated
from sned.measure.denormals import denormal_share, denormals_as_zero
from sned.measure.latency import measure_onnx, random_feeds
from sned.measure.stages import Stage, stages
from sned.timing import Latency

__all__ = [
    "Latency",
    "Stage",
    "agreement",
    "denormal_share",
    "denormals_as_zero",
    "evaluated",
    "measure_onnx",
    "random_feeds",
    "stages",
]
