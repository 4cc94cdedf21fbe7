"""From a network in PyTorch to a file that a runtime takes, checked against the network before it is kept.

In: a model and its example inputs. Out: `Exported`, which says where the file is and how well it agrees.
One runtime a file: `onnx.py`.
"""

from sned.export.onnx import Exported, export_onnx, feeds
from sned.export.parity import Parity

__all__ = ["Exported", "Parity", "export_onnx", "feeds"]
