"""How well a network does: by the user's own measure, or by how often it agrees with another."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from sned.errors import CalibrationError
from sned.evaluation import Evaluate, evaluated, evaluation_mode
from sned.export.parity import Array, has_classes, top1
from sned.graph.example import Inputs, arguments, tensors_in

__all__ = ["Evaluate", "agreement", "evaluated"]


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
    with evaluation_mode(reference), evaluation_mode(model), torch.no_grad():
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
