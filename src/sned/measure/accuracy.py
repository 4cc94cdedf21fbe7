"""How well a network does: by the user's own measure, or by how often it agrees with another."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from sned.errors import CalibrationError, UserError
from sned.export.parity import Array, has_classes, top1
from sned.graph.example import Inputs, arguments, tensors_in

Evaluate: TypeAlias = Callable[[nn.Module], float]
"""A user's measure of a network: higher is better; a fraction in [0, 1] is shown as a percentage."""


def evaluated(model: nn.Module, evaluate: Evaluate) -> float:
    """Ask the user's `evaluate` about a model in evaluation mode; its modes are put back.

    Raises:
        UserError: `evaluate` failed, or did not return a finite number.
    """
    with _evaluation_mode(model), torch.no_grad():
        try:
            value = evaluate(model)
        except Exception as error:
            raise UserError(
                f"`evaluate` failed with {type(error).__name__}: {error}. It is called with the model and "
                "returns a number, higher for a better model."
            ) from error
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(_not_a_number(value)) from error
    if not math.isfinite(number):
        raise UserError(_not_a_number(value))
    return number


def agreement(reference: nn.Module, model: nn.Module, batches: Iterable[Inputs]) -> float:
    """How often two networks choose the same class, over the first output with classes.

    Formula: `mean_i [argmax f(x_i) = argmax g(x_i)]` with `f` the reference and `g` the model.

    Args:
        reference: say, the dense network.
        model: say, the pruned one.
        batches: inputs, without labels, each as the networks are called: a tensor, tuple or dict.

    Returns:
        A fraction in [0, 1].

    Raises:
        CalibrationError: there are no batches, or no output has classes.
    """
    same: list[Array] = []
    with _evaluation_mode(reference), _evaluation_mode(model), torch.no_grad():
        for inputs in batches:
            ours, theirs = _scores(reference, inputs), _scores(model, inputs)
            same.append((top1(ours) == top1(theirs)).reshape(-1))
    if not same:
        raise CalibrationError("There are no inputs to compare two networks on: `batches` is empty.")
    return float(np.concatenate(same).mean())


def _scores(model: nn.Module, inputs: Inputs) -> Array:
    args, kwargs = arguments(inputs)
    outputs = (tensor.float().cpu().numpy() for tensor in tensors_in(model(*args, **kwargs)))
    scores = next(filter(has_classes, outputs), None)
    if scores is None:
        raise CalibrationError(
            "No output of the model has classes to compare, [batch, classes]. Give `evaluate` instead."
        )
    return scores


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _not_a_number(value: object) -> str:
    return f"`evaluate` must return a finite number, higher for a better model, got {value!r}."
