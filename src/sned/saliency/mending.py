"""What a network could do about the loss of units at once: least squares on dense moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from sned.calibration import Calibration, Consumer, Moment, least_squares
from sned.calibration.consumers import layout
from sned.calibration.moments import WIDEST, pooled
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


def mended_together(graph: Graph, gone: Gone, calibration: Calibration, state: State) -> State:
    """What changes when weights that several ops read are solved for once, on what enters all of these ops: those of
    recurrent layers, which every step reads, and of layers that are called twice.

    A state that a recurrent layer reads follows from the weights that are solved for, so that those would drift from
    what they were fitted to: what enters in the dense network, where all is right, serves better.

    Args:
        graph, gone, calibration, state: as for `mended`.

    Returns:
        The parameters and buffers that changed, by name; entries that go are zero.
    """
    changed: dict[str, torch.Tensor] = {}
    for consumers in together(graph, calibration.consumers):
        first = consumers[0]
        lost = [read.rows[np.asarray(gone.get(read.group, ()), np.int64)].ravel() for read in first.reads]
        if any(len(rows) for rows in lost):
            moment = pooled(calibration.moments[consumer.op] for consumer in consumers)
            centre = _take_up_alone(graph, consumers)
            changed |= _mend(graph, first, np.concatenate(lost), moment, {**state, **changed}, centre)
    return changed


def together(graph: Graph, consumers: Iterable[Consumer]) -> Iterator[list[Consumer]]:
    """The consumers of each weight that several of them and nothing else read, all in the same way."""
    by_weight: dict[str, list[Consumer]] = {}
    for consumer in consumers:
        if consumer.shared and consumer.kind != "depthwise" and consumer.width <= WIDEST:
            by_weight.setdefault(consumer.weight, []).append(consumer)
    sizes = Sizes(graph, graph.coupling.keep({}))
    for found in by_weight.values():
        index = layout(graph, sizes, found[0])
        alike = (torch.equal(layout(graph, sizes, other), index) for other in found[1:])
        if found[0].readers == len(found) and all(alike):
            yield found


def _take_up_alone(graph: Graph, consumers: Sequence[Consumer]) -> bool:
    """Whether the same parameters can put the mean of each consumer's output right, and are read for nothing else."""
    if len({consumer.bias for consumer in consumers}) > 1:
        return False
    norms = normalised(graph)
    means = {name for consumer in consumers for name in norms.get(consumer.output, ())}
    reading = {number for number, names in norms.items() if not means.isdisjoint(names)}
    alike = len({tuple(norms.get(consumer.output, ())) for consumer in consumers}) == 1
    return consumers[0].bias is not None or (alike and reading <= {c.output for c in consumers})


def _mend(
    graph: Graph, consumer: Consumer, rows: IntArray, moment: Moment, state: State, centre: bool = True
) -> dict[str, torch.Tensor]:
    assert moment.second is not None
    weight = state[consumer.weight].detach()
    index = layout(graph, Sizes(graph, graph.coupling.keep({})), consumer).long().to(weight.device)
    matrices = weight.flatten()[index].double()
    centre = centre and restores_mean(graph, consumer)
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
