"""Names for what a Keras model holds: the same for a model, its rebuilt twin, and another made by the same code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
from torch import nn

TAKEN = frozenset(dir(nn.Module())) | {
    "before", "entering", "graph", "input_names", "inputs_kept", "keras", "named_tensors", "of", "output_names",
    "places", "plans", "pull", "push", "tensors", "_graph", "_held", "_sned_paths", "_variables",
}  # fmt: skip
"""Attributes of the modules that hold the tensors (`network.Network`, `recording.Forward`)."""


@dataclass(frozen=True)
class Held:
    """One variable of a model.

    Attributes:
        layer: path of the innermost layer that holds it, such as `encoder.mha.query`.
        name: of the variable in that layer, such as `kernel`.
        variable: a `keras.Variable`.
        parameter: whether training may change it; else it is state, such as the moving mean of BatchNormalization.
    """

    layer: str
    name: str
    variable: Any
    parameter: bool

    @property
    def path(self) -> str:
        """The name of its tensor in a graph."""
        return f"{self.layer}.{self.name}" if self.layer else self.name


WIRED = ("Functional", "Sequential")
"""Models whose configuration holds the names of their layers."""

Firsts = Mapping[tuple[str, str], int]
"""Where numbers begin: the first of each stem in a model, by its path and the stem."""

Paths = Mapping[str, str]
"""The paths of a model's layers in order, and the names of their classes."""

_called: WeakKeyDictionary[Any, Paths] = WeakKeyDictionary()
"""The paths in models made from others: whatever their layers call themselves, they are called as there."""


def layers_of(model: Any) -> dict[str, Any]:
    """Every layer of a model by its path, outer ones first; the model itself is "". A shared layer comes once."""
    return {path: one for path, one in operations_of(model).items() if isinstance(one, keras.layers.Layer)}


def operations_of(model: Any) -> dict[str, Any]:
    """The layers of a model by their paths, and what Functional models call beside layers (`x + y`)."""
    found, known = _walked(model, {}), _called.get(model, {})
    if len(known) != len(found) or found.keys() == known.keys():
        return found
    # Not by their own names: those may hold the name of the layer around them, or a number of their process.
    kinds = _kinds(found)
    if [*kinds.values()] == [*known.values()]:
        return dict(zip(known, found.values(), strict=True))
    # Backends keep the layers of a class of one's own in other orders: what is new goes by its class.
    left = {
        kind: [path for path in known if known[path] == kind and path not in found] for kind in kinds.values()
    }
    there = {
        path if path in known or not left[kinds[path]] else left[kinds[path]].pop(0): one
        for path, one in found.items()
    }
    return {path: there[path] for path in known} if there.keys() == known.keys() else found


def _kinds(found: Mapping[str, Any]) -> Paths:
    return {path: type(one).__name__ for path, one in found.items()}


def paths_of(model: Any) -> Paths:
    """The paths of a model's layers, for `call_alike` in this process or another."""
    return _kinds(operations_of(model))


def call_alike(model: Any, paths: Paths) -> None:
    """Let the layers of a model that was made from another one be called as there."""
    _called[model] = paths


def call_shortened(small: Any, model: Any) -> None:
    """Let the layers of a model without some of its layers be called as in the whole one."""
    _called[small] = _kinds(_walked(small, _firsts(model)))


def _walked(model: Any, firsts: Firsts) -> dict[str, Any]:
    """The layers of a model by what they call themselves, numbered from the given first ones or their own."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(one: Any, path: str) -> None:
        seen.add(id(one))
        found[path] = one
        inner = [held for held in _inner(one) if id(held) not in seen]
        least = {stem: number for (outer, stem), number in firsts.items() if outer == path}
        for held, name in zip(inner, _names_in(one, inner, least), strict=True):
            if id(held) not in seen:
                visit(held, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def _firsts(model: Any) -> Firsts:
    """Where the numbers of all layers of a model begin, whose names are in its configuration."""
    found: dict[tuple[str, str], int] = {}
    wired: set[str] = set()
    for path, one in operations_of(model).items():
        outer, _, name = path.rpartition(".")
        if path and outer not in wired:
            continue
        if type(one).__name__ in WIRED:
            wired.add(path)
        if path and (numbered := _numbered(one)) is not None:
            stem, number = numbered
            place = re.fullmatch(rf"{stem}_?(\d*)", name)
            first = number - int(place[1] or 0) if place else number
            found[outer, stem] = min(first, found.get((outer, stem), first))
    return found


def _inner(one: Any) -> list[Any]:
    """The layers right inside a layer, and the other operations of a Functional model."""
    if not isinstance(one, keras.layers.Layer):
        return []
    layers = list(one._flatten_layers(include_self=False, recursive=False))
    every = one.operations if type(one).__name__ == "Functional" else ()
    return [*layers, *(held for held in every if not isinstance(held, keras.layers.Layer))]


def variables_of(model: Any) -> list[Held]:
    """Every weight of a model once, without metrics and random seeds, under the layer that made it."""
    layers = layers_of(model)
    owner: dict[int, tuple[str, Any]] = {}
    for path, layer in layers.items():  # inner layers come later and win
        for variable in layer.weights:
            known = owner.get(id(variable))
            if known is None or path.startswith(f"{known[0]}.") or not known[0]:
                owner[id(variable)] = (path, layer)
    held: dict[str, list[Any]] = {}
    for variable in model.weights:
        held.setdefault(owner[id(variable)][0], []).append(variable)
    return [
        Held(path, name, variable, _is_parameter(layers[path], variable))
        for path, variables in held.items()
        for variable, name in zip(variables, _unique([_plain(v.name) for v in variables]), strict=True)
    ]


def share_constants(model: Any, other: Any) -> None:
    """Give the layers of `other` the tensors that those of `model` keep beside their variables (an adapted mean)."""
    theirs = layers_of(other)
    for path, layer in layers_of(model).items():
        for name, value in list(vars(layer).items()) if path in theirs else ():
            if keras.ops.is_tensor(value) and not isinstance(value, keras.Variable):
                setattr(theirs[path], name, value)


def _is_parameter(layer: Any, variable: Any) -> bool:
    """Also where its layer is frozen: then `variable.trainable` is False, but it was made to be trained."""
    return any(variable is one for one in layer._trainable_variables)


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _plain(name: str) -> str:
    """A name without dots that a module can hold, and without the number that Keras gives to nameless variables."""
    if re.fullmatch(r"variable(_\d+)?", name):
        return "variable"
    return f"{name}_" if name in TAKEN else name.replace(".", "_")


def _numbered(layer: Any) -> tuple[str, int] | None:
    """The stem and the number of a name that Keras gave by itself (`dense`, `dense_1`); None for other names."""
    kind = type(layer).__name__
    stem = re.sub(
        r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    )
    found = re.fullmatch(rf"((?:forward_|backward_)?{stem.lower()})(?:_(\d+))?", layer.name)
    return (found[1], int(found[2] or 0)) if found else None


def _names_in(layer: Any, inner: list[Any], firsts: Mapping[str, int]) -> list[str]:
    """Names of the layers inside one; those that Keras numbered over the whole process are numbered from 0.

    In models whose configuration holds the names the gaps between the numbers are kept, so that most names are those
    that `model.summary()` shows; elsewhere each copy of the layer numbers them differently, and their order counts.
    """
    found = [_numbered(one) for one in inner]
    least = dict(firsts)
    for stem, number in filter(None, found):
        least[stem] = min(number, least.get(stem, number))
    kept = type(layer).__name__ in WIRED
    count: dict[str, int] = {}
    names = []
    for one, numbered in zip(inner, found, strict=True):
        if numbered is None:
            names.append(_plain(one.name))
            continue
        stem, number = numbered
        place = number - least[stem] if kept else count.get(stem, 0)
        count[stem] = count.get(stem, 0) + 1
        names.append(f"{stem}_{place}" if place else stem)
    return _unique(names)
