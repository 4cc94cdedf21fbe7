"""Leave whole layers and residual branches out of a Keras model, by an edit of its configuration.

What comes of it is a model of its own, which all stages take as they take any. Layers are called in it as they are in
the whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import keras
import torch

from sned.errors import SnedError, SurgeryError
from sned.graph.example import Example
from sned.surgery.keras.arrays import to_tensor
from sned.surgery.keras.configuration import configuration, rebuilt
from sned.surgery.keras.naming import call_shortened
from sned.surgery.keras.passages import Passage
from sned.surgery.keras.rebuild import answers, built, fill, hand_over, inputs_like, quickly_made
from sned.surgery.keras.wiring import rewired
from sned.surgery.outputs import largest_difference


def shortened(
    model: Any, chosen: Sequence[Passage], example: Example, state: Mapping[str, torch.Tensor]
) -> Any:
    """A model of its own without some layers, held against `model` with those layers overruled.

    Args:
        model: the whole one; it is not touched.
        chosen: what to leave out.
        example: its inputs.
        state: its tensors by name.

    Raises:
        SurgeryError: it does not run, or computes something else.
    """
    names = ", ".join(one.layer.name for one in chosen)
    try:
        with quickly_made():
            small = rebuilt(_left_out(configuration(model), chosen), model)
            built(small, example, like=small)
    except SnedError:
        raise
    except Exception as error:  # constructors of any layer may raise anything
        raise SurgeryError(
            f"A Keras model without {names} is made from its configuration, but that failed: {type(error).__name__}: "
            f"{error}. Leave that layer in."
        ) from error
    call_shortened(small, model)
    fill(small, state)
    hand_over(model, small)
    _check(small, model, chosen, example)
    return small


def _left_out(config: Mapping[str, Any], chosen: Sequence[Passage]) -> dict[str, Any]:
    """The configuration of a model without some of what is in it."""
    here = {one.route[0]: one.source for one in chosen if len(one.route) == 1}
    held = config["config"]
    layers = []
    for entry in held["layers"]:
        deeper = [one for one in chosen if len(one.route) > 1 and one.route[0] == _name(entry)]
        inside = [replace(one, route=one.route[1:]) for one in deeper]
        layers.append(_left_out(entry, inside) if inside else entry)
    held = {**held, "layers": layers}
    if config["class_name"] == "Sequential":
        held["layers"] = [entry for entry in layers if _name(entry) not in here]
    elif here:
        held = rewired(held, {name: (*made.call, made.place) for name, made in here.items()})
    return {**config, "config": held}


def _name(entry: Mapping[str, Any]) -> str | None:
    """What a layer is called; in a Sequential model that is in its own configuration alone."""
    name: str | None = entry.get("name", entry["config"].get("name"))
    return name


def _check(small: Any, model: Any, chosen: Sequence[Passage], example: Example) -> None:
    """Both compute the same when the model's own layers return what they are to be replaced by."""
    inputs = inputs_like(example)
    with torch.no_grad(), ExitStack() as stack:
        got = _numbers(answers(small, inputs))
        for one in chosen:
            vars(one.operation)["call"] = _returning(one.slot)
            stack.callback(vars(one.operation).pop, "call")
        expected = _numbers(answers(model, inputs))
    try:
        largest_difference(got, expected, example.batch)
    except SurgeryError as error:
        raise SurgeryError(
            "A model without a layer must compute what the original does with that layer overruled, but leaving out "
            f"{', '.join(one.layer.name for one in chosen)} gives other outputs, perhaps because a mask "
            "now passes where the layer held it back. Leave it in; the original was not touched."
        ) from error


def _returning(slot: int) -> Any:
    """A forward pass that returns one of the tensors that it is given, without the mask that Keras hangs onto it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        given = [t for t in keras.tree.flatten((args, kwargs)) if keras.ops.is_tensor(t)]
        return keras.ops.copy(given[slot])

    return call


def _numbers(answer: Any) -> list[torch.Tensor]:
    return [to_tensor(value).cpu() for value in keras.tree.flatten(answer)]
