"""A Keras model as the stages see it: tensors by name, and a forward pass made of its recorded ops.

The replay is what lets everything after the trace (calibration, repair, export, measurement) be the same on every
backend; the model itself runs on the user's own, and is held against it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch import Tensor, nn

from sned.calibration.consumers import Consumer, consumers
from sned.graph.ir import Graph, Op
from sned.graph.plan import Plan
from sned.graph.replay import Replay
from sned.surgery.keras.arrays import to_array, to_tensor
from sned.surgery.keras.naming import Held, layers_of, variables_of
from sned.surgery.keras.recurrent import at_once


class Handle:
    """Holds an object that copies of its owner share."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __deepcopy__(self, _: dict[int, object]) -> Handle:
        return self


class Holder(nn.Module):
    """The tensors of a model in a tree of modules that are named as its layers are."""

    def __init__(self, model: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self._held = Handle(model)
        self.places: list[tuple[str, nn.Module, str]] = []
        modules: dict[str, nn.Module] = {"": self}
        for path, layer in layers_of(model).items():
            if path:
                outer, _, name = path.rpartition(".")
                modules[path] = _kind(type(layer).__name__)()
                modules[outer].add_module(name, modules[path])
        for held in variables_of(model):
            module = modules[held.layer]
            tensor = tensor_of(held) if tensors is None else tensors[held.path]
            if held.parameter and tensor.is_floating_point():
                if not isinstance(tensor, nn.Parameter):
                    tensor = nn.Parameter(tensor, bool(held.variable.trainable))
                module.register_parameter(held.name, tensor)
            else:
                module.register_buffer(held.name, tensor.detach())
            self.places.append((held.path, module, held.name))

    @property
    def keras(self) -> Any:
        """The Keras model."""
        return self._held.value

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Parameters and buffers by name."""
        return [(path, getattr(module, name)) for path, module, name in self.places]

    def tensors(self) -> list[Tensor]:
        """The tensors of the variables, in the order of `variables_of`."""
        return [getattr(module, name) for _, module, name in self.places]

    def pull(self) -> None:
        """Take the values that the variables have now."""
        with torch.no_grad():
            for held, tensor in zip(variables_of(self.keras), self.tensors(), strict=True):
                if tensor is not held.variable.value:
                    tensor.copy_(tensor_of(held))

    def push(self) -> None:
        """Give the variables the values that the tensors have now."""
        for held, tensor in zip(variables_of(self.keras), self.tensors(), strict=True):
            if tensor is not held.variable.value:
                held.variable.assign(to_array(tensor))


class Network(Holder):
    """A Keras model that runs as its graph says, on any backend.

    Args:
        model: a built Keras model.
        graph: its trace; its forward pass needs it.
    """

    def __init__(self, model: Any, graph: Graph | None = None) -> None:
        super().__init__(model)
        self._graph = Handle(graph)
        self.plans: tuple[Plan, ...] = ()
        """What was removed, one plan after the other."""
        self.before: Callable[[Op, dict[int, Tensor]], None] | None = None
        """Called ahead of each op with the op and the live tensors, as by `Replay.run`."""

    @staticmethod
    def of(model: Any, graph: Graph | None = None) -> Network:
        """The network of a model; its class is called as the model's is."""
        kind = _network_kind(type(model).__name__)
        return kind(model, graph)

    @property
    def graph(self) -> Graph | None:
        """The trace of the model, once it is known."""
        found: Graph | None = self._graph.value
        return found

    @graph.setter
    def graph(self, graph: Graph) -> None:
        self._graph.value = graph

    def forward(self, *args: Any) -> Any:
        """The recorded ops on the tensors that this network holds."""
        graph = self.graph
        assert graph is not None
        state = {path: getattr(module, name) for path, module, name in self.places}
        # What is called ahead of each op sees them all.
        instead = at_once(graph, self.keras) if self.before is None else None
        outputs, _ = Replay(graph, state).run((args, {}), before=self.before, instead=instead)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def input_names(self, count: int) -> tuple[str, ...]:
        """Names of `count` inputs, in order: those that the user gave them, if any."""
        named = [tensor.name for tensor in keras.tree.flatten(getattr(self.keras, "inputs", None) or [])]
        given = [re.sub(r"\W", "_", name) for name in named if not re.match("keras_tensor|input_layer", name)]
        if len(set(given)) == count:
            return tuple(given)
        return ("input",) if count == 1 else tuple(f"input_{place}" for place in range(count))

    def output_names(self, plain: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outputs, in order: the keys of a table, or else the `plain` ones."""
        answer = getattr(self.keras, "output", None)
        return tuple(sorted(answer)) if isinstance(answer, dict) and len(answer) == len(plain) else plain

    def inputs_kept(self, dense: Network) -> dict[str, Tensor | None]:
        """The channels of what enters each layer of `dense` that are left here, by the name of its weight; None where
        all are."""
        wide, made = {c.weight: c for c in _products(dense.graph)}, {}
        for consumer in (c for c in _products(self.graph) if c.weight in wide):
            left: Tensor | None = None
            for plan in self.plans[len(dense.plans) :]:
                rank = self.get_parameter(consumer.weight).ndim  # kernels are [..., inputs, outputs]
                if (kept := plan.kept.get(consumer.weight, {}).get(rank - 2)) is not None:
                    left = torch.as_tensor(kept) if left is None else left[torch.as_tensor(kept)]
            if (wide[consumer.weight].channels if left is None else len(left)) == consumer.channels:
                made[consumer.weight] = left
        return made

    @contextmanager
    def entering(self, kept: Mapping[str, Tensor | None]) -> Iterator[dict[str, list[Tensor]]]:
        """What enters the layers of the named weights while the block runs, on the channels kept."""
        seen: dict[str, list[Tensor]] = {}
        at = {consumer.op: consumer for consumer in _products(self.graph) if consumer.weight in kept}

        def before(op: Op, live: dict[int, Tensor]) -> None:
            if (consumer := at.get(op.index)) is not None:
                features, left = live[consumer.input], kept[consumer.weight]
                # Later ops may write over it.
                features = features.clone() if left is None else features.index_select(consumer.axis, left)
                seen.setdefault(consumer.weight, []).append(features)

        self.before = before
        try:
            yield seen
        finally:
            self.before = None


def tensor_of(held: Held) -> Tensor:
    """The value of a variable; under the PyTorch backend the very tensor."""
    value = held.variable.value
    return value if isinstance(value, Tensor) else to_tensor(keras.ops.convert_to_numpy(value))


@functools.lru_cache(maxsize=2)  # a dense network and a pruned one, side by side
def _products(graph: Graph | None) -> tuple[Consumer, ...]:
    """The layers that contract what enters them with a weight of their own."""
    assert graph is not None
    return tuple(c for c in consumers(graph) if c.parts == 1 and not c.shared)


@functools.cache
def _kind(name: str) -> type[nn.Module]:
    """A module class that is called like a layer's."""
    return type(name, (nn.Module,), {})


@functools.cache
def _network_kind(name: str) -> type[Network]:
    return type(name, (Network,), {})
