"""What a network gains and loses in fact: measured latency of exported files, and accuracy.

In: ONNX files, or networks and inputs. Out: `Latency` in milliseconds, and fractions of agreement.
"""

from sned.measure.accuracy import agreement, evaluated
from sned.measure.latency import measure_onnx, random_feeds
from sned.timing import Latency

__all__ = ["Latency", "agreement", "evaluated", "measure_onnx", "random_feeds"]
