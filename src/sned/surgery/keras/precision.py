"""Models of mixed precision, looked at as they compute in single precision.

A policy such as "mixed_float16" is for training on a GPU: variables are in single precision already. What is recorded,
held against a recording, or written to a file computes in single precision; the model's own policies are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from sned.errors import ModelError

HALVES = ("float16", "bfloat16")


def mixed(model: Any) -> list[Any]:
    """The layers that compute in half precision on variables in single precision."""
    return [
        layer
        for layer in model._flatten_layers()
        if layer.compute_dtype in HALVES and layer.variable_dtype == "float32" and not layer.quantization_mode
    ]


@contextmanager
def in_single_precision(model: Any) -> Iterator[None]:
    """Within the block, let layers of mixed precision compute in that of their variables."""
    before = [(layer, layer._dtype_policy) for layer in mixed(model)]
    for layer, _ in before:
        layer._dtype_policy = keras.DTypePolicy("float32")
    try:
        yield
    finally:
        for layer, policy in before:
            layer._dtype_policy = policy


def refuse_bfloat16(model: Any) -> None:
    """Refuse a model of which no file could be run.

    Raises:
        ModelError: it has variables in bfloat16.
    """
    if any(variable.dtype == "bfloat16" for variable in model.variables):
        raise ModelError(
            "Variables in bfloat16 are what runtimes compute with on few devices. Make the model under the policy "
            "'float32' or 'mixed_bfloat16', give it the weights (`set_weights`), and go on with that one."
        )
