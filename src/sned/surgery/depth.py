"""Leave whole layers out: their input passes in their place, or, on a branch that is added, zeros do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sned.errors import SurgeryError
from sned.graph.example import ArgsAndKwargs, copied
from sned.graph.ir import Graph
from sned.graph.layers import Layer, chosen_layers
from sned.graph.modules import modules_of
from sned.graph.trace import device_of, mode_of, plain_kernels, state_of
from sned.surgery.home import moved_inputs
from sned.surgery.keras import is_keras
from sned.surgery.outputs import answered
from sned.surgery.probe import trace_example
from sned.surgery.twin import twin


class Bypass(nn.Module):
    """Stands where a layer was: returns one of its arguments, or zeros of that shape.

    Args:
        slot: which argument: a position, or a name.
        zeros: return zeros instead, so that a residual branch adds nothing.
        returned: length of the tuple to return, filled up with None; None returns the tensor itself.
    """

    def __init__(self, slot: int | str, *, zeros: bool, returned: int | None) -> None:
        super().__init__()
        self.slot, self.zeros, self.returned = slot, zeros, returned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer is replaced by."""
        given: torch.Tensor = args[self.slot] if isinstance(self.slot, int) else kwargs[self.slot]
        passed = torch.zeros_like(given) if self.zeros else given
        return passed if self.returned is None else (passed, *[None] * (self.returned - 1))

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"slot={self.slot!r}, zeros={self.zeros}"


def without(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph of the network without some of its layers, to plan further on.

    Plans made from it leave those layers out too: `sned.apply` takes them with the original model. What remains keeps
    its weights here; `sned.prune(…, without=names)` repairs it towards the answers of the whole network.

    Args:
        graph: what `sned.trace` made.
        names: of layers in `graph.layers`; what lies inside one goes with it. In a Keras model a residual branch goes
            by the name of the addition.

    Raises:
        PlanError: a name is not that of a layer that can be left out; close names are listed.
        SurgeryError: the shortened network does not run, or computes something else.

    Example:
        >>> graph.layers[0].name
        'layer1.0'
        >>> plan = sned.without(graph, ["layer3.4", "layer3.5"]).plan({})
        >>> plan = sned.without(sned.trace(keras_model, x), ["conv3_block2_add"]).plan({})
    """
    if is_keras(graph.model):
        from sned.surgery.keras.road import without_keras

        return without_keras(graph, names)
    chosen = chosen_layers(graph.layers, names)
    if not chosen:
        return graph
    traced = trace_example(_shortened(graph, chosen), graph.example)
    return replace(traced, bypassed=(*graph.bypassed, *(layer.name for layer in chosen)))


def _shortened(graph: Graph, chosen: Sequence[Layer]) -> nn.Module:
    """A copy of the graph's model without some layers; it shares its tensors with the model.

    The copy is held against the model itself, run with those layers' results replaced on their way out.
    """
    small = twin(graph.model, state_of(graph.model))
    for layer in chosen:
        gone, stand_in = small.get_submodule(layer.name), _stand_in(layer)
        for _, parent in list(modules_of(small)):  # a module may have several names
            held = [leaf for leaf, child in parent._modules.items() if child is gone]
            parent._modules.update(dict.fromkeys(held, stand_in))
    _check(small, graph, chosen)
    return small


def _stand_in(layer: Layer) -> nn.Module:
    call = layer.called
    if call.alone and call.returned is None and not layer.adds:
        return nn.Identity()
    return Bypass(call.slot, zeros=layer.adds, returned=call.returned)


def _check(small: nn.Module, graph: Graph, chosen: Sequence[Layer]) -> None:
    """Both compute the same when hooks overrule what the model's own layers return."""
    model: nn.Module = graph.model
    device = device_of(state_of(model))
    if device.type == "meta":
        return
    inputs = moved_inputs(graph.example.random(), device)
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(mode_of(model, training=False))
        stack.enter_context(mode_of(small, training=False))
        # As it will be: a fast path asks layers for more than their answers.
        _run(small, graph, copied(inputs))
        stack.enter_context(plain_kernels())
        got = _run(small, graph, copied(inputs))
        for layer in chosen:
            overrule = Bypass(layer.called.slot, zeros=layer.adds, returned=layer.called.returned)
            handle = model.get_submodule(layer.name).register_forward_hook(
                lambda _, given, named, __, overrule=overrule: overrule(*given, **named), with_kwargs=True
            )
            stack.callback(handle.remove)
        expected = answered(model, graph.written, inputs)
    if len(got) != len(expected) or not all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(got, expected, strict=True)
    ):
        raise SurgeryError(
            "A network without a layer must compute what the original does with that layer overruled, but leaving out "
            f"{', '.join(layer.name for layer in chosen)} gives other outputs. The original was not touched."
        )


def _run(small: nn.Module, graph: Graph, inputs: ArgsAndKwargs) -> Sequence[torch.Tensor]:
    try:
        return answered(small, graph.written, inputs)
    except Exception as error:
        raise SurgeryError(
            "A layer can be left out where nothing else asks for it, but without it the forward pass raised "
            f"{type(error).__name__}: {error}. Leave that layer in."
        ) from error
