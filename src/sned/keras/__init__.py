"""Training of pruned Keras models through `fit`, on any backend: distillation, and zeros that stay or come gradually.

In: Keras models. Out: Keras models; nothing of sned stays in them. Needs the `keras` extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sned.keras.distill import Distiller
    from sned.keras.zeros import GradualSparsity, HoldZeros, sparsity_of

_HOMES = {
    "Distiller": "sned.keras.distill",
    "GradualSparsity": "sned.keras.zeros",
    "HoldZeros": "sned.keras.zeros",
    "sparsity_of": "sned.keras.zeros",
}

__all__ = ["Distiller", "GradualSparsity", "HoldZeros", "sparsity_of"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sned.keras' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
