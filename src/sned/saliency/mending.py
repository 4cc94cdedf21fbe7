"""What a network could do about the loss of one group at once: least squares of the consumers on dense moments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from sned.calibration import Calibration, Consumer, least_squares
from sned.calibration.consumers import layout
from sned.graph.ir import Graph, Group, IntArray, Ref
from sned.graph.sizes import Sizes
from sned.saliency.reconstruction import consumers_of, restores_mean
from sned.saliency.registry import State


def mended(
    graph: Graph, group: Group, gone: Sequence[int], calibration: Calibration, state: State
) -> dict[str, torch.Tensor]:
    """The dense state, with every consumer of `group` solved for what it would have without the units `gone`.

    The entries that go are left at zero, so the result can still be cut down by the plan. Consumers that share their
    weight, or are too wide for second moments, stay as they are.
    """
    result = dict(state)
    for consumer, rows in consumers_of(group, calibration.consumers):
        moment = calibration.moments[consumer.op]
        if consumer.shared or moment.second is None:
            continue
        _mend(graph, consumer, rows[np.asarray(gone, np.int64)], moment.second, moment.mean, result)
    return result


def _mend(
    graph: Graph, consumer: Consumer, rows: IntArray, second: torch.Tensor, mean: torch.Tensor, state: dict[str, torch.Tensor]
) -> None:
    index = layout(graph, Sizes(graph, graph.coupling.keep({})), consumer).long()
    weight = state[consumer.weight].detach()
    matrices = weight.flatten()[index].double()
    centre = restores_mean(graph, consumer)
    shifts = []
    for part in range(consumer.parts):
        old, h, m = matrices[part].clone(), second[part].double(), mean[part].double()
        lost = rows[(rows >= part * consumer.width) & (rows < (part + 1) * consumer.width)] - part * consumer.width
        kept = torch.from_numpy(np.setdiff1d(np.arange(consumer.width), lost))
        covariance = h - torch.outer(m, m) if centre else h
        fit = least_squares(covariance[kept][:, kept], (old @ covariance)[:, kept], prior=old[:, kept])
        matrices[part] = 0.0
        matrices[part][:, kept] = fit.weight
        shifts.append((old - matrices[part]) @ m)
    flat = weight.flatten().clone()
    flat[index] = matrices.to(flat.dtype)
    state[consumer.weight] = flat.reshape(weight.shape)
    if centre:
        _shift(graph, consumer, torch.cat(shifts), state)


def _shift(graph: Graph, consumer: Consumer, shift: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    """Put the mean of the outputs right: in the bias, or in what a batch normalisation takes for the mean.

    A normalisation over features takes it out by itself.
    """
    if consumer.bias is not None:
        state[consumer.bias] = state[consumer.bias] + shift.to(state[consumer.bias].dtype)
        return
    names = {number: name for name, number in graph.parameters.items()}
    for name in _running_means(graph, consumer.output, names):
        state[name] = state[name] - shift.to(state[name].dtype)


def _running_means(graph: Graph, tensor: int, names: dict[int, str]) -> Iterable[str]:
    for op in graph.ops:
        if "batch_norm" in op.name and op.inputs[0] == tensor:
            mean = op.args[3]
            if isinstance(mean, Ref) and mean.id in names:
                yield names[mean.id]
