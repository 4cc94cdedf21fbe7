"""Whole layers and residual branches that can be left out of a Keras model, and what is read in their place.

That is a tensor that was there before: what the layer is given, or, of an addition, the summand that the others follow
from. The branches that nothing reads any more then go too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

from sned.graph.layers import Layer
from sned.surgery.keras.configuration import configuration
from sned.surgery.keras.naming import operations_of
from sned.surgery.keras.wiring import Call, Made, Wiring


@dataclass(frozen=True)
class Passage:
    """How a layer can be left out.

    Attributes:
        layer: what is told of it.
        operation: the layer, or what `x + y` is in a Functional model.
        route: the names of the models around it, outer ones first, and its own.
        source: what is read in its place, one of the tensors that it is given.
        slot: which of them.
    """

    layer: Layer
    operation: Any
    route: tuple[str, ...]
    source: Made
    slot: int


def passages(model: Any) -> tuple[Passage, ...]:
    """The layers that can be left out of a Functional or Sequential model, and of such models in it; the layers of
    other classes are known to their own code alone."""
    paths = {id(one): path for path, one in operations_of(model).items()}

    def visit(one: Any, config: Mapping[str, Any], route: tuple[str, ...]) -> Iterator[Passage]:
        if (opened := _Opened.of(one, config)) is None:
            return
        for call in opened.once:
            operation, here = opened.operations[call.name], (*route, call.name)
            yield from visit(operation, opened.entries[call.name], here)
            slot = opened.slot(call)
            shapes = opened.going(call, slot) if slot is not None else []
            if slot is not None and any(len(shape) > 1 for shape in shapes):
                adds = opened.shortcut(call) is not None
                layer = Layer(paths[id(operation)], adds, sum(map(prod, shapes)))
                yield Passage(layer, operation, here, opened.wiring.reads[call][slot], slot)

    return tuple(visit(model, configuration(model), ()))


@dataclass(frozen=True)
class _Opened:
    """A model whose wiring is known.

    Attributes:
        wiring: what reads what.
        operations: its layers, and what else it calls, by their names.
        entries: their configurations.
    """

    wiring: Wiring
    operations: Mapping[str, Any]
    entries: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def of(model: Any, config: Mapping[str, Any]) -> _Opened | None:
        """The wiring of a model; None where its class has a forward pass of its own."""
        kind = config["class_name"]
        if kind == "Sequential" and getattr(model, "_functional", None) is not None:
            model = model._functional
            config = configuration(model)
        elif kind != "Functional":
            return None
        held = config["config"]
        entries = {entry["name"]: entry for entry in held["layers"]}
        return _Opened(Wiring.of(held), {one.name: one for one in model.operations}, entries)

    @cached_property
    def once(self) -> list[Call]:
        """The calls of layers that are called once."""
        times = Counter(call.name for call in self.wiring.reads)
        return [call for call in self.wiring.reads if times[call.name] == 1]

    def slot(self, call: Call) -> int | None:
        """Which of the tensors that a layer is given is read when it is left out; None where it cannot be."""
        shortcut = self.shortcut(call)
        return 0 if shortcut is None and self._passes(call) and call.name not in self._tails else shortcut

    def shortcut(self, call: Call) -> int | None:
        """Which summand of an addition all others follow from, if they are of one shape."""
        kind, given = type(self.operations[call.name]), self.wiring.reads[call]
        if kind.__name__ != "Add" or not kind.__module__.startswith("keras."):
            return None
        found = (
            slot
            for slot, one in enumerate(given)
            if (others := _others(given, slot))
            and all(self._follows(other, one) and one.alike(other) for other in others)
        )
        return next(found, None)

    def _follows(self, one: Made, other: Made) -> bool:
        """Whether one tensor is worked out from what another one's call made."""
        return one.call != other.call and other.call in self.wiring.behind(one.call)

    def _passes(self, call: Call) -> bool:
        """Whether a layer makes one tensor of one other of the same known shape."""
        given = set(self.wiring.reads[call])
        made = {made for tensors in self.wiring.reads.values() for made in tensors if made.call == call}
        if len(given) != 1 or len(made) != 1:
            return False
        (taken,), (returned,) = given, made
        return taken.alike(returned) and None not in taken.shape[1:]

    @cached_property
    def _tails(self) -> set[str]:
        """The layers at the ends of the branches that are added, each down to the first that holds weights: to pass
        its input on would add something else, where leaving the branch out adds nothing."""
        slots = {call: self.shortcut(call) for call in self.once}
        ends = (_others(self.wiring.reads[call], slot) for call, slot in slots.items() if slot is not None)
        return {name for made in chain(*ends) for name in self._tail(made.call)}

    def _tail(self, at: Call) -> Iterator[str]:
        while True:
            yield at.name
            given = {made.call for made in self.wiring.reads.get(at, ())}
            if len(given) != 1 or self._weights(at.name):
                return
            (at,) = given

    def going(self, call: Call, slot: int) -> list[tuple[int, ...]]:
        """Shapes of the weights that go when a tensor that a layer is given is read in its place."""
        instead = {call.name: self.wiring.reads[call][slot].call.name}
        gone = self.wiring.needed({}) - self.wiring.needed(instead)
        held = {id(weight): weight for name in gone for weight in self._weights(name)}
        return [tuple(map(int, weight.shape)) for weight in held.values()]

    def _weights(self, name: str) -> list[Any]:
        return list(getattr(self.operations[name], "weights", ()))


def _others(given: tuple[Made, ...], slot: int) -> tuple[Made, ...]:
    """The tensors but one."""
    return given[:slot] + given[slot + 1 :]
