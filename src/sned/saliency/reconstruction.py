"""What the layers that read a unit cannot make up for: structured optimal brain surgery on their inputs.

For every group the units go one after the other, each time the one whose loss the others can best answer for
in all consumers together. `error[k]` is the error left after best repair when the first k are gone: for each
consumer `y = W x` relative to the energy of `W x`, added up over the consumers of the group. All curves of
all groups come from one set of moments.

Where a normalisation or a bias follows a consumer, the mean of its output is restored for free, so the
moments are taken around the mean there.

Reference: Hassibi and Stork, Optimal Brain Surgeon, 1993; Frantar et al., Optimal Brain Compression, 2022
(there of single weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch

from sned.calibration import Consumer, Moment, Problem, greedy_removal
from sned.calibration.consumers import layout
from sned.graph.ir import Graph, Group, IntArray, Ref
from sned.graph.sizes import Sizes
from sned.memory import trim
from sned.saliency.magnitude import magnitude
from sned.saliency.registry import Evidence, State, criterion
from sned.saliency.scores import FloatArray, Scores, curve, interleaved


@criterion("reconstruction", "what the readers of a unit cannot make up for (OBS)", calibrated=True)
def reconstruction(evidence: Evidence) -> Scores:
    """Units that the others can best replace go first.

    Groups that no consumer reads (queries and keys of attention) fall back to L2 magnitude, and the scores
    say so.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    unread = [g.name for g in graph.groups if not consumers_of(g, calibration.consumers)]
    slot = calibration.resume.slot("curves")
    found = dict(slot.found)
    if found:
        calibration.resume.resumed("error curves", len(found) // 2, len(graph.groups))
    with evidence.progress.task("error curves", total=len(graph.groups)) as advance:
        for group in graph.groups:
            if f"order/{group.name}" not in found:
                order, error = _curve(evidence, group)
                found |= {
                    f"order/{group.name}": torch.from_numpy(order),
                    f"error/{group.name}": torch.from_numpy(error),
                }
                slot.offer(found.copy)
                trim()
            advance(1)
    slot.close(found.copy)
    return Scores(
        "reconstruction",
        {group.name: found[f"order/{group.name}"].numpy() for group in graph.groups},
        {group.name: found[f"error/{group.name}"].numpy() for group in graph.groups},
        unread_note(graph, unread),
    )


def unread_note(graph: Graph, groups: Sequence[str]) -> tuple[str, ...]:
    """What is said of groups whose units no layer reads with weights of its own."""
    if not groups:
        return ()
    note = f"no layer reads the units of {', '.join(groups)}: L2 magnitude was used there"
    if (removed := _removed_by(graph)) is None:
        return (note,)
    advice = (
        "weights that a parametrisation works out in each pass are not repaired; where no training follows, take it "
        f"off first: `torch.nn.utils.{removed}`"
    )
    return note, advice


def _removed_by(graph: Graph) -> str | None:
    """What takes a parametrisation of PyTorch off a layer, in the older API a weight norm; None where there is none."""
    names = graph.parameters
    if any("parametrizations." in name for name in names):
        return "parametrize.remove_parametrizations(layer, 'weight')"
    if any(name.endswith(".weight_g") and f"{name[:-1]}v" in names for name in names):
        return "remove_weight_norm(layer)"
    return None


def _curve(evidence: Evidence, group: Group) -> tuple[IntArray, FloatArray]:
    """The order of a group's units and its error curve; by magnitude where no layer reads them."""
    graph, calibration, state = evidence.graph, evidence.learnt, evidence.state
    readers = consumers_of(group, calibration.consumers)
    if not readers:
        return _by_magnitude(graph, group, state)
    problems = [problem(graph, c, rows, calibration.moments[c.op], state) for c, rows in readers]
    removal = greedy_removal(problems, group.cells)
    return removal.order, np.maximum.accumulate(removal.error)


def consumers_of(group: Group, consumers: Iterable[Consumer]) -> list[tuple[Consumer, IntArray]]:
    """Who feels the loss of a group's units, and which entries of its patches they are, `[size, k]`.

    A depthwise convolution loses the output with the input, so it feels nothing.
    """
    return [
        (consumer, read.rows)
        for consumer in consumers
        for read in consumer.reads
        if read.group == group.index and consumer.kind != "depthwise"
    ]


def matrices(graph: Graph, consumer: Consumer, state: State) -> torch.Tensor:
    """`[parts, outputs, width]`: the weights of a consumer."""
    index = layout(graph, Sizes(graph, graph.coupling.keep({})), consumer)
    return state[consumer.weight].detach().flatten()[index.long()].double()


def restores_mean(graph: Graph, consumer: Consumer) -> bool:
    """Whether something behind a consumer can put the mean of its output right."""
    return consumer.bias is not None or bool(normalised(graph).get(consumer.output))


@lru_cache(maxsize=1)
def normalised(graph: Graph) -> dict[int, list[str]]:
    """Which tensors a batch normalisation reads, and the names of the running means it takes off."""
    names = {number: name for name, number in graph.parameters.items()}
    found: dict[int, list[str]] = {}
    for op in graph.ops:
        mean = op.args[3] if "batch_norm" in op.name and len(op.args) > 3 else None
        if isinstance(mean, Ref) and mean.id in names:
            found.setdefault(op.inputs[0], []).append(names[mean.id])
    return found


def problem(graph: Graph, consumer: Consumer, rows: IntArray, moment: Moment, state: State) -> Problem:
    """A consumer as the surgeon sees it: all parts of a grouped convolution in one block-diagonal problem."""
    weight = matrices(graph, consumer, state)
    if moment.second is None:
        return _diagonal(weight, moment.diagonal, rows)
    centre = restores_mean(graph, consumer)
    if consumer.parts == 1:
        return Problem(moment.second[0], weight[0], rows, mean=moment.mean[0] if centre else None)
    second, mean = moment.second.double(), moment.mean.double()
    second = second - mean[:, :, None] * mean[:, None, :] if centre else second
    return Problem(_block_diagonal(second), torch.cat(list(weight), dim=1), rows)


def _block_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    """`[parts * n, parts * n]` of blocks `[parts, n, n]`."""
    parts, size, _ = blocks.shape
    result = blocks.new_zeros(parts, size, parts, size)
    each = torch.arange(parts)
    result[each, :, each] = blocks
    return result.reshape(parts * size, parts * size)


def _diagonal(weight: torch.Tensor, diagonal: torch.Tensor, rows: IntArray) -> Problem:
    """A consumer too wide for second moments: each unit is lost by itself, nothing makes up for it.

    A loss is a sum of `E[x_i^2] |W_i|^2` over the unit's entries (the score of Wanda, squared).
    """
    loss = (weight.square().sum(dim=1) * diagonal.double()).flatten()[torch.from_numpy(rows)].sum(dim=1)
    return Problem(
        torch.eye(len(rows), dtype=torch.float64), loss.sqrt()[None], np.arange(len(rows))[:, None]
    )


def _by_magnitude(graph: Graph, group: Group, state: State) -> tuple[IntArray, FloatArray]:
    """Order and error by magnitude, the whole group being worth 1 like a consumer's output."""
    importance = magnitude(graph, group, state, 2) / group.size
    order = interleaved(group, importance)
    return order, curve(importance[order])
