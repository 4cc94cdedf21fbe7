"""What reads what in a Functional model, from its configuration; and the same configuration with other readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

Key = TypeVar("Key", str, "Call")


class Call(NamedTuple):
    """One call of a layer: its name, and which of its calls."""

    name: str
    number: int


class Made(NamedTuple):
    """A tensor: the call that made it, its place in what that returned, its shape and its dtype."""

    call: Call
    place: int
    shape: tuple[int | None, ...]
    dtype: str

    def alike(self, other: Made) -> bool:
        """Whether two tensors have one shape and one dtype."""
        return (self.shape, self.dtype) == (other.shape, other.dtype)


@dataclass(frozen=True)
class Wiring:
    """The calls in a Functional model.

    Attributes:
        reads: the tensors that each call is given, in order.
        outputs: the calls that make what the model returns.
        inputs: the names of its inputs.
    """

    reads: Mapping[Call, tuple[Made, ...]]
    outputs: tuple[Call, ...]
    inputs: tuple[str, ...]

    @staticmethod
    def of(config: Mapping[str, Any]) -> Wiring:
        """The wiring in the `config` of a serialised model."""
        given = {e["name"]: [tuple(_tensors(node)) for node in e["inbound_nodes"]] for e in config["layers"]}
        outputs = tuple(_calls(config["output_layers"]))
        asked = [made.call for nodes in given.values() for node in nodes for made in node] + list(outputs)
        first: dict[str, int] = {}  # the calls of a nested model are numbered from 1
        for call in asked:
            first[call.name] = min(call.number, first.get(call.name, call.number))
        reads = {
            Call(name, first.get(name, 0) + i): node
            for name, nodes in given.items()
            for i, node in enumerate(nodes)
        }
        return Wiring(reads, outputs, tuple(call.name for call in _calls(config["input_layers"])))

    def behind(self, call: Call) -> set[Call]:
        """The calls that one follows from, and it itself."""
        return _reached([call], {one: [made.call for made in given] for one, given in self.reads.items()})

    def needed(self, instead: Mapping[str, str]) -> set[str]:
        """The names of the layers that the model is made of when what reads some of them reads others instead."""
        names: dict[str, list[str]] = {}
        for call, given in self.reads.items():
            names.setdefault(call.name, []).extend(final(made.call.name, instead) for made in given)
        return _reached([*self.inputs, *(final(call.name, instead) for call in self.outputs)], names)


def final(name: str, instead: Mapping[str, str]) -> str:
    """What is read in the place of a layer, which may be left out itself."""
    while name in instead:
        name = instead[name]
    return name


def rewired(config: Mapping[str, Any], instead: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The `config` of a serialised model in which other tensors, (name, call, place), are read in the place of those
    that the named layers make; without the layers that nothing reads any more."""
    needed = Wiring.of(config).needed({name: source[0] for name, source in instead.items()})

    def other(history: Any) -> Any:
        while history[0] in instead:
            history = list(instead[history[0]])
        return history

    def read(nest: Any) -> Any:
        if isinstance(nest, dict):
            if nest.get("class_name") == "__keras_tensor__":
                held = nest["config"]
                return {**nest, "config": {**held, "keras_history": other(held["keras_history"])}}
            return {key: read(value) for key, value in nest.items()}
        return type(nest)(map(read, nest)) if isinstance(nest, list | tuple) else nest

    def returned(nest: Any) -> Any:
        if _is_history(nest):
            return other(nest)
        if isinstance(nest, dict):
            return {key: returned(value) for key, value in nest.items()}
        return type(nest)(map(returned, nest))

    layers = [
        {**entry, "inbound_nodes": read(entry["inbound_nodes"])}
        for entry in config["layers"]
        if entry["name"] in needed
    ]
    return {**config, "layers": layers, "output_layers": returned(config["output_layers"])}


def _tensors(nest: Any) -> Iterator[Made]:
    if isinstance(nest, dict):
        if nest.get("class_name") == "__keras_tensor__":
            held = nest["config"]
            name, number, place = held["keras_history"]
            yield Made(Call(name, number), place, tuple(held["shape"]), held["dtype"])
            return
        nest = list(nest.values())
    for inner in nest if isinstance(nest, list | tuple) else ():
        yield from _tensors(inner)


def _calls(nest: Any) -> Iterator[Call]:
    """Calls among inputs or outputs, each written as [name, call, place] in nested lists and tables."""
    if _is_history(nest):
        yield Call(nest[0], nest[1])
    else:
        for inner in nest.values() if isinstance(nest, dict) else nest:
            yield from _calls(inner)


def _is_history(nest: Any) -> bool:
    return isinstance(nest, list) and len(nest) == 3 and isinstance(nest[0], str)


def _reached(start: Iterable[Key], reads: Mapping[Key, Iterable[Key]]) -> set[Key]:
    found: set[Key] = set()
    left = list(start)
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += reads.get(one, ())
    return found
