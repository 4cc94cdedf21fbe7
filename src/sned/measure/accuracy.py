"""How well a network does: by the user's own measure, or by how often it agrees with another."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

import numpy as np
import torch
from torch import Tensor, nn

from sned.calibration.answers import with_rows
from sned.errors import CalibrationError
from sned.evaluation import Evaluate, evaluated, evaluation_mode
from sned.export.parity import Array, has_classes, top1
from sned.graph import Graph
from sned.graph.example import Inputs, called, tensors_in

__all__ = ["Evaluate", "agreement", "evaluated"]


def agreement(
    reference: nn.Module | Iterable[Sequence[Tensor]],
    model: nn.Module,
    batches: Iterable[Inputs],
    graph: Graph | None = None,
) -> float:
    """How often two networks choose the same class, over the first output with classes.

    Formula: `mean_i [argmax f(x_i) = argmax g(x_i)]` with `f` the reference and `g` the model.

    Args:
        reference: say, the dense network, or its outputs for each batch.
        model: say, the pruned one.
        batches: inputs, without labels, each as the networks are called: a tensor, tuple or dict.
        graph: of the reference, which tells the outputs that have rows; the others are not looked at, and outputs that
            are given for each batch lack them already.

    Returns:
        A fraction in [0, 1].

    Raises:
        CalibrationError: there are no batches, or no output has classes.
    """
    same: list[Array] = []
    with evaluation_mode(model), torch.no_grad():
        batches, seen = tee(batches)
        known = _answers(reference, seen, graph) if isinstance(reference, nn.Module) else reference
        for ours, theirs in zip(known, _answers(model, batches, graph), strict=True):
            same.append((top1(_scores(ours)) == top1(_scores(theirs))).reshape(-1))
    if not same:
        raise CalibrationError("There are no inputs to compare two networks on: `batches` is empty.")
    return float(np.concatenate(same).mean())


def _answers(model: nn.Module, batches: Iterable[Inputs], graph: Graph | None) -> Iterator[Sequence[Tensor]]:
    with evaluation_mode(model):
        for inputs in batches:
            outputs = tensors_in(called(model, inputs))
            yield outputs if graph is None else with_rows(graph, outputs)


def _scores(outputs: Iterable[Tensor]) -> Array:
    scores = next(filter(has_classes, (tensor.float().cpu().numpy() for tensor in outputs)), None)
    if scores is None:
        raise CalibrationError(
            "No output of the model has classes to compare, [batch, classes]. Give `evaluate` instead."
        )
    return scores
