"""From a network in PyTorch to a file that a runtime takes, checked against the network before it is kept.

In: a model and its example inputs. Out: `Exported`, which says where the file is and how well it agrees.
One runtime a file: `onnx.py`, `litert.py`, `coreml.py`, `executorch.py`, `openvino.py`; what each is asked for is in
`target.py`, and the road that they share in `road.py`. The package can be called: `sned.export(model, …)`.
"""

import sys
from types import ModuleType

from sned.export.exported import Deployed, Exported
from sned.export.onnx import export_onnx, feeds
from sned.export.parity import Parity
from sned.export.road import export, export_levels
from sned.export.target import PRECISIONS, TARGETS, find_target, installed

__all__ = [
    "PRECISIONS",
    "TARGETS",
    "Deployed",
    "Exported",
    "Parity",
    "export",
    "export_levels",
    "export_onnx",
    "feeds",
    "find_target",
    "installed",
]


class _Callable(ModuleType):
    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _Callable
