"""What a network could do about the loss of units at once: least squares on dense moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from sned.calibration import Calibration, Consumer, Moment, least_squares
from sned.calibration.consumers import layout
from sned.calibration.moments import WIDEST
from sned.graph.ir import Graph, IntArray
from sned.graph.sizes import Sizes
from sned.saliency.reconstruction import normalised, restores_mean
from sned.saliency.registry import State

Gone = Mapping[int, Sequence[int]]
"""Units that leave, by index of their group."""


def mended(graph: Graph, gone: Gone, calibration: Calibration, state: State, *, of: Iterable[int]) -> State:
    """What changes in the dense state when consumers are solved for what they would have without some units.

    The entries that go are left at zero, so that the result can still be cut down by a plan. Consumers that
    share their weight, or are too wide for second moments, stay as they are, as do depthwise ones, which
    leave with their input.

    Args:
        graph: the network's structure.
        gone: all the units that leave.
        calibration: of the dense network.
        state: of the dense network.
        of: groups (by index) whose consumers to solve for; an empty loss puts them back to what they were.

    Returns:
        The parameters and buffers that changed, by name.
    """
    touched = set(of)
    changed: dict[str, torch.Tensor] = {}
    for consumer in calibration.consumers:
        if consumer.shared or consumer.kind == "depthwise" or consumer.width > WIDEST:
            continue
        if any(read.group in touched for read in consumer.reads):
            lost = [
                read.rows[np.asarray(gone.get(read.group, ()), np.int64)].ravel() for read in consumer.reads
            ]
            changed |= _mend(graph, consumer, np.concatenate(lost), calibration.moments[consumer.op], state)
    return changed


def _mend(
    graph: Graph, consumer: Consumer, rows: IntArray, moment: Moment, state: State
) -> dict[str, torch.Tensor]:
    assert moment.second is not None
    weight = state[consumer.weight].detach()
    index = layout(graph, Sizes(graph, graph.coupling.keep({})), consumer).long().to(weight.device)
    matrices = weight.flatten()[index].double()
    centre = restores_mean(graph, consumer)
    shifts = []
    for part, own in enumerate(matrices):
        mean, first = moment.mean[part].double(), part * consumer.width
        lost = np.sort(rows[(rows >= first) & (rows < first + consumer.width)] - first)
        before = own @ mean
        if len(lost):
            _answer_for(own, torch.from_numpy(lost), moment.second[part], mean if centre else None)
        shifts.append(before - own @ mean)
    flat = weight.flatten().clone()
    flat[index] = matrices.to(flat.dtype)
    changed = {consumer.weight: flat.reshape(weight.shape)}
    return changed | _shifted(graph, consumer, torch.cat(shifts), state) if centre else changed


def _answer_for(
    own: torch.Tensor, lost: torch.Tensor, second: torch.Tensor, mean: torch.Tensor | None
) -> None:
    """Let the other entries of weights `[outputs, width]` make up for those that are lost, which become zero; around
    the mean, where one is given."""
    stay = torch.ones(len(second), dtype=torch.bool)
    stay[lost] = False
    kept = stay.nonzero()[:, 0]
    within, across = second[kept][:, kept].double(), second[lost][:, kept].double()
    if mean is not None:
        within.addr_(mean[kept], mean[kept], alpha=-1)
        across.addr_(mean[lost], mean[kept], alpha=-1)
    own[:, kept] += least_squares(within, own[:, lost] @ across).weight
    own[:, lost] = 0.0


def _shifted(graph: Graph, consumer: Consumer, shift: torch.Tensor, state: State) -> dict[str, torch.Tensor]:
    """Put the mean of the outputs right: in the bias, or in what a batch normalisation takes for the mean."""
    if consumer.bias is not None:
        return {consumer.bias: state[consumer.bias].detach() + shift.to(state[consumer.bias].dtype)}
    means = normalised(graph).get(consumer.output, ())
    return {name: state[name] - shift.to(state[name].dtype) for name in means}
