"""Models that compute with something else than Keras: what another library returns would be recorded as a constant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch

from sned.errors import ModelError


@contextmanager
def within_keras() -> Iterator[None]:
    """Refuse, while a model is made and run under the PyTorch backend, that a tensor becomes an array.

    Raises:
        ModelError: one did; names the layer.
    """
    asked: list[str] = []
    original = torch.Tensor.__array__

    def noted(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        del self, args, kwargs
        asked.append(_layer_on_the_stack())
        raise ModelError(f"A tensor became an array in {asked[-1]}.")

    torch.Tensor.__array__ = noted  # type: ignore[method-assign]
    try:
        yield
    except Exception as error:
        if not asked:
            raise
        raise ModelError(
            f"A model must compute with the layers of Keras and with `keras.ops`, but {asked[-1]} gives its tensors to "
            "another library (`tf.*` or NumPy), which works under one backend alone and cannot be followed. Replace "
            "such calls with those of the same name in `keras.ops`."
        ) from error
    finally:
        torch.Tensor.__array__ = original  # type: ignore[method-assign]


def _layer_on_the_stack() -> str:
    """The innermost layer of the user's own that is being called, or else of Keras."""
    frame = sys._getframe()
    called = []
    while frame.f_back is not None:
        frame = frame.f_back
        layer = frame.f_locals.get("self")
        if frame.f_code.co_name == "call" and isinstance(layer, keras.layers.Layer):
            called.append(layer)
    own = [layer for layer in called if not type(layer).__module__.startswith("keras.")]
    found = next(iter([*own, *called]), None)
    return "a function" if found is None else f"`{type(found).__name__}.call` (layer {found.name!r})"
