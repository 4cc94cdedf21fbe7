"""The configuration that a Keras model is rebuilt from, and the numbers in it that a plan can change.

Every whole number in it that may be a size is swapped for one that remembers where it stood. A model built from that
tells, when it makes its variables and when it is recorded, which of them its sizes come from.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import keras

from sned.errors import ModelError
from sned.graph.formulas import Attribute, Sized
from sned.surgery.keras.naming import call_alike, paths_of

NO_SIZES = frozenset({
    "axes", "axis", "build_input_shape", "dilation_rate", "dilation", "ndim",
    "input_shape", "kernel_size", "keras_history", "node_index", "output_padding", "padding", "pool_size", "seed",
    "shared_object_id", "strides", "trainable",
})  # fmt: skip
"""Keys of a configuration below which no number is a count of units."""

_ALIKE = {"backward_layer": "layer"}
"""Keys below which the sizes must be those below another one: `Bidirectional` reckons its output as twice the one."""

_OLD_SHAPES = ("build_config", "compile_config")


def configuration(model: Any) -> dict[str, Any]:
    """What Keras writes down to make the model again, without the shapes that it was built for.

    Raises:
        ModelError: the model, or a layer in it, does not tell its configuration.
    """
    try:
        return _without_shapes(keras.saving.serialize_keras_object(model))  # type: ignore[no-any-return]
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"A Keras model is rebuilt from its configuration, but {type(model).__name__} does not tell it: "
            f"{reason_of(error)}. Give every class of your own a `get_config` that returns the arguments of its "
            "`__init__`."
        ) from error


def sized(config: Any) -> Any:
    """The configuration with every number that may be a size swapped for a `Sized` that remembers its place."""
    return _walk(config, lambda value, place: Sized.of(value, place))


def edited(config: Any, news: Mapping[Attribute, int]) -> Any:
    """The configuration with new numbers at the given places."""
    return _walk(config, lambda value, place: news.get(place, value))


def rebuilt(config: Mapping[str, Any], like: Any) -> Any:
    """A model made anew from a configuration; it has variables as soon as Keras can tell their shapes.

    Args:
        config: from `configuration`, edited or not.
        like: a model of the same classes, so that they are found without being registered.

    Raises:
        Whatever the constructors of its layers raise.
    """
    with classes_of(like):
        made = keras.saving.deserialize_keras_object(config, safe_mode=False)
    call_alike(made, paths_of(like))
    return made


def classes_of(model: Any) -> AbstractContextManager[Any]:
    """Let Keras find the classes of a model's layers, and the functions in them, by name, registered or not."""
    return keras.saving.custom_object_scope(own_objects(model))  # type: ignore[no-any-return]


def own_objects(model: Any) -> dict[str, Any]:
    """Classes and functions that a model is made of and that are not Keras's, by the names in its configuration."""
    found: dict[str, Any] = {}
    for layer in model._flatten_layers():
        found[type(layer).__name__] = type(layer)
        found.update({f.__name__: f for f in vars(layer).values() if inspect.isfunction(f)})
    for name in _texts(configuration(model)):
        found.setdefault(name, keras.saving.get_registered_object(name))
    return {
        name: one
        for name, one in found.items()
        if one is not None and one.__module__.partition(".")[0] != "keras" and one.__name__ != "<lambda>"
    }


def _texts(nest: Any) -> Iterator[str]:
    if isinstance(nest, str):
        yield nest
    elif isinstance(nest, dict):
        for value in nest.values():
            yield from _texts(value)
    elif isinstance(nest, list | tuple):
        for value in nest:
            yield from _texts(value)


def inner_inputs(config: Any, path: str = "") -> Iterator[tuple[str, list[Attribute]]]:
    """The names of all models in a configuration, and where the shapes of their inputs stand, in order."""
    if isinstance(config, list | tuple):
        for i, item in enumerate(config):
            yield from inner_inputs(item, f"{path}/{i}")
    elif isinstance(config, dict):
        layers = config.get("layers")
        if isinstance(layers, list) and isinstance(config.get("name"), str):
            shapes = {
                layer["config"]["name"]: Attribute(f"{path}/layers/{i}/config", "batch_shape")
                for i, layer in enumerate(layers)
                if isinstance(layer, dict) and layer.get("class_name") == "InputLayer"
            }
            order = [name for name in _texts(config.get("input_layers", list(shapes))) if name in shapes]
            yield config["name"], [shapes[name] for name in order]
        for key, item in config.items():
            yield from inner_inputs(item, f"{path}/{key}")


def owner(config: Any, place: Attribute) -> str:
    """The name of the layer in whose configuration a number stands, to be shown."""
    names = (held["name"] for held in _down(config, place) if isinstance(held, dict) and "name" in held)
    return [name for name in names if isinstance(name, str)][-1]


def name_of(place: Attribute) -> str:
    """The argument in which a number stands, in a list or in lists of lists too."""
    return next(step for step in (place.name, *reversed(place.module.split("/"))) if not step.isdigit())


def number_at(config: Any, place: Attribute) -> Any:
    """What stands at a place of a configuration."""
    *_, holder = _down(config, place)
    held = holder.get(place.name)
    return held if place.item is None or held is None else held[place.item]


def _down(config: Any, place: Attribute) -> Iterator[Any]:
    """The configuration and everything in it on the way to a place."""
    yield config
    for step in filter(None, place.module.split("/")):
        config = config[int(step) if isinstance(config, list | tuple) else step]
        yield config


def _walk(config: Any, change: Callable[[int, Attribute], int], path: str = "") -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "__keras_tensor__":
            return config
        return {
            key: value if key in NO_SIZES else _walk_item(value, change, path, key)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_walk(item, change, f"{path}/{i}") for i, item in enumerate(config))
    return config


def _walk_item(value: Any, change: Callable[[int, Attribute], int], path: str, key: str) -> Any:
    if type(value) is int:
        return change(value, Attribute(path, key))
    inner = f"{path}/{_ALIKE.get(key, key)}"
    if isinstance(value, list | tuple) and not any(isinstance(item, str) for item in value):
        return type(value)(
            change(item, Attribute(path, key, item=i))
            if type(item) is int
            else _walk_item(item, change, inner, str(i))
            for i, item in enumerate(value)
        )
    return _walk(value, change, inner)  # a list that holds a name says which call of a layer is read


def _without_shapes(config: Any) -> Any:
    if isinstance(config, dict):
        serialised = "class_name" in config
        return {
            key: _without_shapes(value)
            for key, value in config.items()
            if not (serialised and key in _OLD_SHAPES)
        }
    if isinstance(config, list | tuple):
        return type(config)(map(_without_shapes, config))
    return config


def reason_of(error: BaseException) -> str:
    """What Keras could not find or do, from a text that begins with its own classes and ends with the configuration."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = text.rpartition("encountered: ")[2].partition(" Full object config:")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception encountered when calling")] or lines
    return told[0][:300].rstrip(".") if told else type(error).__name__
