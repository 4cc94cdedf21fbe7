"""Keras 3 models on any backend: traced under the PyTorch backend, rebuilt on their own from edited configurations.

In: a Keras model and inputs, or a plan. Out: a graph like any other; a plain Keras model of the same classes.
Importing this package does not import Keras.
"""

from __future__ import annotations

import sys
from typing import Any

from sned.errors import ModelError


def is_keras_model(model: Any) -> bool:
    """Whether a model is one of Keras 3 as its user knows it, and no network that holds one."""
    return is_keras(model) and isinstance(model, sys.modules["keras"].Model)


def is_keras(model: Any) -> bool:
    """Whether a model is one of Keras 3, or a network that holds one.

    Raises:
        ModelError: it is a model of Keras 2, or a layer alone.
    """
    if any(kind.__module__.partition(".")[0] == "tf_keras" for kind in type(model).__mro__):
        raise ModelError(
            f"sned prunes Keras 3 models, and {type(model).__name__} is one of Keras 2 (tf_keras). Save it as .h5 or "
            ".keras and load it with `keras.saving.load_model` of Keras 3, with `TF_USE_LEGACY_KERAS` unset."
        )
    keras = sys.modules.get("keras")
    if keras is None or not hasattr(keras, "Model"):
        return False
    if isinstance(model, keras.Model):
        return True
    if isinstance(model, keras.layers.Layer):
        raise ModelError(
            f"sned prunes whole Keras models, got the layer {type(model).__name__}. Put it into "
            "`keras.Sequential([...])`."
        )
    network = sys.modules.get("sned.surgery.keras.network")
    return network is not None and isinstance(model, network.Network)
