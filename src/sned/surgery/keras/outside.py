"""Models that Keras cannot make and run again as they are: with another library, or with code that lost its names."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch

from sned.errors import ModelError


@contextmanager
def within_keras() -> Iterator[None]:
    """Refuse, while a model is made and run under the PyTorch backend, that a layer makes an array of a tensor: what
    another library returns would be recorded as a constant.

    Raises:
        ModelError: one did; names the layer. Or a lambda does not work any more.
    """
    asked: list[str] = []
    original = torch.Tensor.__array__

    def noted(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = _layer_on_the_stack()
        if layer is None:
            return original(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        asked.append(layer)
        raise ModelError(f"A tensor became an array in {asked[-1]}.")

    torch.Tensor.__array__ = noted  # type: ignore[method-assign]
    try:
        yield
    except Exception as error:
        if (lost := _lost(error)) is not None:
            raise ModelError(
                f"A model is made again from its configuration, which holds a lambda as bare code: {lost}. Replace it "
                "by a function or a layer of your own at the top of a module, decorated with "
                "`@keras.saving.register_keras_serializable()`."
            ) from error
        if not asked:
            raise
        raise ModelError(
            f"A model must compute with the layers of Keras and with `keras.ops`, but {asked[-1]} gives its tensors to "
            "another library (`tf.*` or NumPy), which works under one backend alone and cannot be followed. Replace "
            "such calls with those of the same name in `keras.ops`."
        ) from error
    finally:
        torch.Tensor.__array__ = original  # type: ignore[method-assign]


def _lost(error: BaseException | None) -> str | None:
    """What a lambda lost, if that is why a model could not be made or run again."""
    said = ""
    while error is not None:
        said += f"{error}\n"
        error = error.__cause__ or error.__context__
    name = re.search(r"name '(\w+)' is not defined", said)
    if name is not None and re.search(r"Lambda(\.call|'s output)", said):
        return f"there it does not know {name[1]!r}, nor any other name from around it"
    if re.search(r"function identifier: .*'value': [(\[]", said):
        return "Keras loads it again in a `Lambda` layer alone, not as an activation"
    return None


def _layer_on_the_stack() -> str | None:
    """The innermost layer of the user's own that is being called, or else of Keras; None where none is."""
    frame = sys._getframe()
    called = []
    while frame.f_back is not None:
        frame = frame.f_back
        layer = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
        if frame.f_code.co_name == "call" and isinstance(layer, keras.layers.Layer):
            called.append(layer)
    own = [layer for layer in called if not type(layer).__module__.startswith("keras.")]
    found = next(iter([*own, *called]), None)
    return None if found is None else f"`{type(found).__name__}.call` (layer {found.name!r})"
