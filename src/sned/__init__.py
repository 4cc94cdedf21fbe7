"""sned cuts a trained network down until it fits the device that will run it, and proves what was gained."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sned.version import __version__

if TYPE_CHECKING:
    from sned.devices.budget import Budget
    from sned.errors import SnedError
    from sned.export import export, export_onnx
    from sned.graph import Graph, Group, Plan
    from sned.pipeline import Result, plan, prune
    from sned.repair.sparsify import Sparse, sparsify
    from sned.surgery import apply, burn_in, load, save, trace, without
    from sned.training import Distillation, Recipe
    from sned.training.finetune import Tuned, finetune

_HOMES = {
    "Budget": "sned.devices.budget",
    "Distillation": "sned.training",
    "Graph": "sned.graph",
    "Group": "sned.graph",
    "Plan": "sned.graph",
    "Recipe": "sned.training",
    "Result": "sned.pipeline",
    "SnedError": "sned.errors",
    "Sparse": "sned.repair",
    "Tuned": "sned.training",
    "apply": "sned.surgery",
    "burn_in": "sned.surgery",
    "export": "sned.export",
    "export_onnx": "sned.export",
    "finetune": "sned.training",
    "keras": "sned.keras",
    "load": "sned.surgery",
    "plan": "sned.pipeline",
    "prune": "sned.pipeline",
    "save": "sned.surgery",
    "sparsify": "sned.repair",
    "trace": "sned.surgery",
    "without": "sned.surgery",
}
"""Where each public name lives; imported when first used, so that `sned --help` does not wait for PyTorch."""

__all__ = [
    "Budget",
    "Distillation",
    "Graph",
    "Group",
    "Plan",
    "Recipe",
    "Result",
    "SnedError",
    "Sparse",
    "Tuned",
    "__version__",
    "apply",
    "burn_in",
    "export",
    "export_onnx",
    "finetune",
    "load",
    "plan",
    "prune",
    "save",
    "sparsify",
    "trace",
    "without",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sned' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
