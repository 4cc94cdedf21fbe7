"""LSTM and GRU layers of Keras, all steps in the one op that PyTorch and most runtimes have for them.

Under the PyTorch backend Keras goes step by step, and so units are found and calibrated in steps. What runs the
network, and what a file is written from, does the same at once: hundreds of steps would be thousands of ops.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
import torch
from torch import Tensor

from sned.graph.ir import Graph
from sned.graph.recording import Given
from sned.graph.replay import Instead
from sned.surgery.keras.naming import layers_of, variables_of

KINDS = {keras.layers.LSTM: keras.layers.LSTMCell, keras.layers.GRU: keras.layers.GRUCell}
"""The layers that are taken, and the cells that they must have."""


_known: WeakKeyDictionary[Graph, Mapping[int, Instead]] = WeakKeyDictionary()
"""What was found for the graphs that are in use."""


def at_once(graph: Graph, model: Any) -> Mapping[int, Instead]:
    """What is done in the place of the steps of recurrent layers, for `Replay.run`."""
    if graph not in _known:
        _known[graph] = _found(graph, model)
    return _known[graph]


def _found(graph: Graph, model: Any) -> Mapping[int, Instead]:
    layers = layers_of(model)
    names = {id(held.variable): held.path for held in variables_of(model)}
    instead: dict[int, Instead] = {}
    for call in graph.recorded.main.given:
        if _has_an_op(layers.get(call.path)):
            cell = layers[call.path].cell
            weights = [v for v in (cell.kernel, cell.recurrent_kernel, cell.bias) if v is not None]
            numbers = tuple(graph.parameters[names[id(variable)]] for variable in weights)
            steps = Steps.of(layers[call.path], call, numbers)
            if steps is not None and _leaving(graph, call) <= steps.known:
                instead |= dict.fromkeys(range(call.first_op, call.last_op), _nothing)
                instead[call.first_op] = steps.run
    return instead


MANY = 2000
"""Ops that take minutes to be written to a file."""


def warn_of_steps(graph: Graph, model: Any) -> None:
    """Say which recurrent layers make a network of very many ops."""
    layers, instead = layers_of(model), at_once(graph, model)
    loops = [
        call
        for call in graph.recorded.main.given
        if isinstance(layers.get(call.path), keras.layers.RNN) and call.first_op not in instead
    ]
    count = sum(call.last_op - call.first_op for call in loops)
    if count > MANY:
        names = ", ".join(dict.fromkeys(repr(call.path) for call in loops))
        warnings.warn(
            f"Recurrent layers that go step by step, {names}, make {count:,} operations of this example, and to write "
            "a file of them takes minutes. Where the model takes sequences of any length, give an example of fewer "
            "steps: the same units are found. LSTM and GRU layers of Keras's own arguments are one operation.",
            stacklevel=2,
        )


def _has_an_op(layer: Any) -> bool:
    """Whether PyTorch's ops compute what a layer does."""
    if type(layer) not in KINDS or type(layer.cell) is not KINDS[type(layer)]:
        return False
    plain = (layer.activation, layer.recurrent_activation) == (
        keras.activations.tanh,
        keras.activations.sigmoid,
    )
    return plain and getattr(layer.cell, "reset_after", True)


def _leaving(graph: Graph, call: Given) -> set[int]:
    """The tensors made in a call that are read elsewhere, or returned by the network."""
    ops = graph.ops
    made = {number for op in ops[call.first_op : call.last_op] for number in op.outputs if number is not None}
    others = (*ops[: call.first_op], *ops[call.last_op :])
    return made & {*graph.outputs, *(number for op in others for number in op.inputs)}


def _nothing(_: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    return {}


@dataclass(frozen=True)
class Steps:
    """The steps of one call of a layer.

    Attributes:
        layer: the layer.
        weights: numbers of the kernel, of the recurrent kernel and of the bias, if there is one.
        sequences, mask: numbers of what it was given, `[batch, steps, features]` and `[batch, steps]` or None.
        states: numbers of the states that it begins with; empty where those are zero.
        made: numbers of what it returned: outputs, and perhaps the states at the end.
    """

    layer: Any
    weights: tuple[int, ...]
    sequences: int
    mask: int | None
    states: tuple[int, ...]
    made: tuple[int | None, ...]

    @staticmethod
    def of(layer: Any, call: Given, weights: tuple[int, ...]) -> Steps | None:
        """The steps in a call as it was recorded; None where it was given anything but what a layer mostly is."""
        named = call.named
        given = [*call.args, *named.get("sequences", ()), *named.get("initial_state", ())]
        sequences, *states = [number for number in given if number is not None]
        if len(given) not in (1, 1 + len(layer.state_size)) or None in given:
            return None
        return Steps(
            layer, weights, sequences, next(iter(named.get("mask", ())), None), tuple(states), call.made
        )

    @property
    def known(self) -> set[int | None]:
        """What `run` makes: PyTorch tells the memory of an LSTM after the last step alone, masked or not."""
        forgotten = self.mask is not None and len(self.made) == 3
        return {*(self.made[:2] if forgotten else self.made)}

    def run(self, live: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        """The tensors that the layer returned, from those that it was given."""
        sequences, mask = live[self.sequences], None if self.mask is None else live[self.mask]
        weights = [live[number] for number in self.weights]
        states = [live[number] for number in self.states] or self._zeros(sequences)
        if self.layer.go_backwards:
            sequences, mask = sequences.flip(1), None if mask is None else mask.flip(1)
        if mask is None:
            outputs, *ends = self._all(sequences, states, weights)
        else:
            packed = Packed.of(mask)
            outputs, *ends = self._all(packed.ahead(sequences), states, weights)
            ends[0] = packed.last(outputs, states[0])
            outputs = packed.back(outputs, held=not self.layer.zero_output_for_mask)
        returned = [outputs if self.layer.return_sequences else outputs[:, -1], *ends]
        return {number: made for number, made in zip(self.made, returned, strict=False) if number is not None}

    def _zeros(self, sequences: Tensor) -> list[Tensor]:
        zeros = sequences.new_zeros(sequences.shape[0], self.layer.units)
        return [zeros] * len(self.layer.state_size)

    def _all(
        self, sequences: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Outputs of all steps, and the states after the last one."""
        rest = (len(weights) > 2, 1, 0.0, False, False, True)
        begin = [state.unsqueeze(0) for state in states]
        if type(self.layer) is keras.layers.LSTM:
            outputs, *ends = torch.lstm(sequences, begin, _as_lstm(*weights), *rest)
        else:
            outputs, *ends = torch.gru(sequences, begin[0], _as_gru(*weights), *rest)
        return outputs, *(end.squeeze(0) for end in ends)


def _as_lstm(kernel: Tensor, recurrent: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """Weights as PyTorch has them; it adds two biases."""
    biases = [] if bias is None else [bias, torch.zeros_like(bias)]
    return [kernel.mT, recurrent.mT, *biases]


def _as_gru(kernel: Tensor, recurrent: Tensor, biases: Tensor | None = None) -> list[Tensor]:
    """Weights as PyTorch has them: the gate that resets comes before the one that updates."""
    weights = [_reset_first(kernel).mT, _reset_first(recurrent).mT]
    return weights if biases is None else [*weights, *_reset_first(biases).unbind()]


def _reset_first(weight: Tensor) -> Tensor:
    update, reset, new = weight.chunk(3, -1)
    return torch.cat([reset, update, new], -1)


@dataclass(frozen=True)
class Packed:
    """Sequences whose masked steps come behind all others, so that those that count follow on one another.

    Attributes:
        mask: which steps count, `[batch, steps]`.
        place: where each step that counts goes to, `[batch, steps]`; of a masked one, where the last one before it went
            to, -1 if there is none.
        order: which step stands at each place, `[batch, steps]`.
    """

    mask: Tensor
    place: Tensor
    order: Tensor

    @staticmethod
    def of(mask: Tensor) -> Packed:
        """The places of the steps of a mask."""
        mask = mask.bool()
        counted, rows, steps = mask.long(), *mask.shape
        place = counted.cumsum(1) - 1
        behind = place[:, -1:] + (1 - counted).cumsum(1)
        to = torch.where(mask, place, behind)
        every = torch.arange(steps, device=mask.device).expand(rows, steps)
        return Packed(mask, place, torch.zeros_like(to).scatter(1, to, every))

    def ahead(self, sequences: Tensor) -> Tensor:
        """Sequences with the masked steps behind."""
        return _taken(sequences, self.order)

    def back(self, outputs: Tensor, *, held: bool) -> Tensor:
        """Outputs at the steps that they belong to; at masked ones those before, if `held`, or else zero."""
        there = self.place >= 0 if held else self.mask
        return torch.where(there.unsqueeze(-1), _taken(outputs, self.place.clamp(min=0)), 0)

    def last(self, outputs: Tensor, begin: Tensor) -> Tensor:
        """The outputs of the last steps that count; `begin` where there is none."""
        place = self.place[:, -1:]
        return torch.where(place >= 0, _taken(outputs, place.clamp(min=0)).squeeze(1), begin)


def _taken(sequences: Tensor, steps: Tensor) -> Tensor:
    # Not `take_along_dim`, which `torch.export` fixes the batch in.
    return sequences.gather(1, steps.unsqueeze(-1).expand(-1, -1, sequences.shape[-1]))
