"""A Keras model made anew without values, from a configuration whose numbers remember their places (`configuration`).

What its variables are sized by is thereby traced to the configuration, as `graph/provenance.py` traces numbers in a
PyTorch module to attributes.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import torch
from keras.src.backend.common import dtypes

from sned.errors import ModelError
from sned.graph.example import Example
from sned.graph.formulas import OPENED, Attribute, Sized, SizedFloat
from sned.surgery.keras.configuration import reason_of, rebuilt
from sned.surgery.keras.naming import share_constants, variables_of
from sned.surgery.keras.outside import within_keras

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Twin:
    """A model made from a configuration, without values; `made` are its variables in order, as asked for."""

    model: Any
    made: tuple[tuple[Any, Shape], ...]


def make_twin(config: Mapping[str, Any], like: Any, example: Example) -> Twin:
    """Make a model from a configuration without giving its variables values.

    Raises:
        Unmade: a layer did not accept its configuration; holds the variables made until then.
        ModelError: the model computes with another library.
    """
    made: list[tuple[Any, Shape]] = []
    with (
        within_keras(),
        dtypes_told(),
        keras.StatelessScope(initialize_variables=False),
        _variables_noted(made),
    ):
        try:
            model = rebuilt(config, like)
            if not model.built or len(variables_of(model)) < len(variables_of(like)):
                args, _ = example.build(
                    lambda leaf: torch.empty(leaf.shape, dtype=getattr(torch, leaf.dtype), device="meta")
                )
                with keras.device("meta"), torch.no_grad():
                    model(*args)
        except Exception as error:
            raise Unmade(error, tuple(made)) from error
    share_constants(like, model)
    return Twin(model, tuple(made))


class Unmade(ModelError):
    """A model could not be made from its configuration."""

    def __init__(self, error: Exception, made: tuple[tuple[Any, Shape], ...]) -> None:
        self.reason = f"{type(error).__name__}: {reason_of(error)}"
        self.made = made
        super().__init__(
            f"A Keras model is rebuilt from its configuration, but that failed: {self.reason}. Give every class of "
            "your own a `get_config` that returns the arguments of its `__init__`, and try "
            "`keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))`."
        )


@dataclass(frozen=True)
class _Always:
    """An initialiser that gives one value."""

    value: Any

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return self.value


@contextmanager
def _variables_noted(made: list[tuple[Any, Shape]]) -> Iterator[None]:
    """Note every variable as it is made, with the shape that was asked for."""
    original = keras.Variable.__init__

    def noted(
        self: Any, initializer: Any, shape: Any = None, dtype: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if not callable(initializer) and not isinstance(initializer, str):
            # A value, which Keras takes in no such scope: models that compile themselves make an optimiser's.
            value = keras.ops.convert_to_tensor(initializer, dtype)
            initializer, shape = _Always(value), tuple(value.shape)
            dtype = dtype or keras.backend.standardize_dtype(value.dtype)
        original(self, initializer, shape, dtype, *args, **kwargs)
        made.append((self, tuple(self.shape) if shape is None else tuple(shape)))

    keras.Variable.__init__ = noted
    try:
        yield
    finally:
        keras.Variable.__init__ = original


BUILT = "built "
"""Begins the `Attribute.module` of a size that a layer was built for, before it is known which tensor had it."""


@contextmanager
def shapes_traced() -> Iterator[None]:
    """Let layers be built for shapes whose sizes remember which layer and which of its arguments they are of."""
    original = vars(keras.layers.Layer)["__new__"]

    def made(cls: Any, *args: Any, **kwargs: Any) -> Any:
        layer = original.__get__(None, cls)(cls, *args, **kwargs)
        build = layer.build

        @functools.wraps(build)
        def traced(*shapes: Any, **named: Any) -> Any:
            places = itertools.count()

            def remembered(shape: Any, argument: str = "") -> Any:
                if isinstance(shape, dict):
                    return {name: remembered(inner) for name, inner in shape.items()}
                if not isinstance(shape, list | tuple):
                    return shape
                if not all(size is None or isinstance(size, int) for size in shape):
                    return type(shape)(map(remembered, shape))
                module, name = f"{BUILT}{id(layer)}", f"{next(places)} {argument}"
                return type(shape)(
                    Sized.of(size, Attribute(module, name, item=axis)) if type(size) is int else size
                    for axis, size in enumerate(shape)
                )

            return build(
                *map(remembered, shapes),
                **{name: remembered(shape, name.removesuffix("_shape")) for name, shape in named.items()},
            )

        layer.build = traced
        return layer

    keras.layers.Layer.__new__ = staticmethod(made)
    try:
        yield
    finally:
        keras.layers.Layer.__new__ = original


@contextmanager
def conversions_traced(model: Any) -> Iterator[None]:
    """Let the layers of Keras, and those of a model's own classes, derive numbers from sizes (`int(width // heads)`,
    `1 / sqrt(float(key_dim))`) without losing their sources."""
    packages = {
        kind.__module__.partition(".")[0] for layer in model._flatten_layers() for kind in type(layer).__mro__
    }
    homes = ("keras.src.layers.", *(f"{name}." for name in packages - {"keras", "torch", "builtins"}))
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if f"{name}.".startswith(homes) and module is not None:
                for kind in OPENED.keys() - vars(module).keys():
                    vars(module)[kind] = OPENED[kind]
                    stack.callback(vars(module).pop, kind)
        yield


@contextmanager
def dtypes_told() -> Iterator[None]:
    """Let ops of Keras take numbers that remember their sources for plain ones (`arange(shape(x)[1])`): without a dtype
    of their own, they go by their class."""
    original = dtypes._dtype_and_weaktype
    plain = {Sized: int, SizedFloat: float}
    dtypes._dtype_and_weaktype = lambda kind: original(plain.get(kind, kind))
    try:
        yield
    finally:
        dtypes._dtype_and_weaktype = original


def check_alike(model: Any, twin: Any) -> None:
    """Refuse a model that its configuration does not make again.

    Raises:
        ModelError: its variables are others; the first one is named.
    """
    mine, theirs = (
        [(held.name, tuple(map(int, held.variable.shape))) for held in variables_of(one)]
        for one in (model, twin)
    )
    if mine != theirs:
        name = next((a[0] for a, b in zip(mine, theirs, strict=False) if a != b), "a variable")
        raise ModelError(
            f"A Keras model is rebuilt from its configuration, but then {type(model).__name__} has other variables "
            f"(the first one: {name!r}). Give every class of your own a `get_config` that returns the arguments of its "
            "`__init__`, and change nothing of a layer after it was made."
        )
