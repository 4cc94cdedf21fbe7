"""Sequential least squares: front to back, every consumer answers for what was removed before it.

Each consumer of the pruned network is solved for on the activations that the pruned and already repaired network gives
it, against what the same op of the dense network made of the same inputs:

    min over V, b of  E | t - V x' - b |² + ridge * |V - W|²

with `x'` the patches in the pruned network, `W` the weights cut to what remains, and `t` the dense output `y` (kept
channels). Where a residual sum follows, `t = y + (s - s') / g`: `s` and `s'` are the other side of the sum in the
dense and in the pruned network and `g` the factor of the BatchNorm between, so that each block also makes up for the
errors of those before it. A consumer without a bias leaves `b` to the BatchNorm that follows, as `mean - b`.

Both networks advance together on a live cut of all inputs, so that the whole costs two forward passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sned.calibration import Calibration, Consumer
from sned.calibration.calibrate import patch_seed
from sned.calibration.consumers import layout
from sned.calibration.moments import WIDEST, CrossMoment, Moment, Sums
from sned.calibration.patches import chunks, share_of
from sned.calibration.solver import RIDGE, least_squares, squared_error
from sned.calibration.walk import Live, Walk
from sned.graph.example import arguments, tensors_in
from sned.graph.ir import Graph
from sned.graph.plan import Plan
from sned.graph.replay import State, keep_of
from sned.graph.sizes import Sizes
from sned.progress import SILENT, Progress
from sned.repair.cuts import Cuts
from sned.repair.following import Following, followings

FAINT = 1e-3
"""A BatchNorm factor below this share of the largest one is taken for zero: nothing is made up for through it."""


@dataclass(frozen=True)
class Options:
    """How to reconstruct.

    Attributes:
        ridge: relative to the mean of the diagonal of the moments.
        residual: whether a consumer also makes up for the other side of the sum that follows it.
    """

    ridge: float = RIDGE
    residual: bool = True


@dataclass(frozen=True)
class Solved:
    """One consumer, repaired: squared errors of its output on calibration inputs, relative to its energy."""

    name: str
    weight: str
    before: float
    after: float


@dataclass(frozen=True)
class _Task:
    """A consumer with all that solving for it takes."""

    consumer: Consumer
    following: Following
    index: Tensor = field(repr=False)
    share: float


def reconstruct(
    graph: Graph,
    state: State,
    plan: Plan,
    calibration: Calibration,
    *,
    count: int | None = None,
    options: Options = Options(),
    progress: Progress = SILENT,
    workdir: Path | None = None,
) -> tuple[dict[str, Tensor], tuple[Solved, ...]]:
    """Solve for every consumer of a pruned network in turn.

    Args:
        graph: what `sned.trace` made of the dense network.
        state: its parameters and buffers by name.
        plan: what is removed.
        calibration: gives the inputs.
        count: how many of its inputs to use, from the first; all when None.
        options: see `Options`.
        progress: shown while it runs.
        workdir: where activations are spooled to when there are many.

    Returns:
        Parameters and buffers of the pruned network, and what each consumer gained.
    """
    dense, pruned = Walk(graph, state), Walk(graph, state, plan)
    pruned.state.update({name: t.detach().clone() for name, t in pruned.state.items()})
    tasks = _tasks(graph, plan, calibration, count or calibration.count)
    solved = []
    with Cuts(workdir) as cuts, progress.task("repairing layers", total=len(tasks)) as advance:
        sizes = _start(cuts, dense, pruned, calibration, count)
        at = (0, 0)
        for task in tasks:
            at, moment, target = _look(task, (dense, pruned), at, cuts, sizes, options)
            solved.append(_solve(task, pruned.state, moment, target, options.ridge))
            advance(1)
    return pruned.state, tuple(solved)


def _start(cuts: Cuts, dense: Walk, pruned: Walk, calibration: Calibration, count: int | None) -> list[int]:
    sizes = []
    for number, inputs in enumerate(calibration.batches(0, count)):
        cuts.put(number, dense.start(inputs), pruned.start(inputs))
        sizes.append(next(t.shape[0] for t in tensors_in(arguments(inputs)) if t.ndim))
    return sizes


def _tasks(graph: Graph, plan: Plan, calibration: Calibration, count: int) -> list[_Task]:
    """The consumers that can be solved for: those whose weight no other op reads, and that are not too wide."""
    sizes = Sizes(graph, keep_of(graph, plan))
    after = followings(graph, calibration.consumers)
    alone = [c for c in calibration.consumers if not c.shared]
    indexed = [(c, layout(graph, sizes, c).long()) for c in alone]
    return [
        _Task(consumer, after[consumer.op], index, share_of(consumer, graph, count))
        for consumer, index in indexed
        if index.shape[2] <= WIDEST
    ]


def _look(
    task: _Task,
    walks: tuple[Walk, Walk],
    at: tuple[int, int],
    cuts: Cuts,
    sizes: list[int],
    options: Options,
) -> tuple[tuple[int, int], Moment, CrossMoment]:
    """Bring all batches up to a consumer, and sum up what enters it and what should come out."""
    dense, pruned = walks
    consumer = task.consumer
    sums = Sums()
    for number, size in enumerate(sizes):
        a, b = cuts.take(number)
        dense.advance(a, size, at[0], consumer.op + 1)
        pruned.advance(b, size, at[1], consumer.op)
        target = _target(task, dense, pruned, a, b, options.residual)
        space = tuple(target.shape[2:]) if consumer.geometry else ()
        seed = patch_seed(0, consumer, number)
        for piece in chunks(
            consumer,
            b[consumer.input],
            space,
            (target,),
            share=task.share,
            seed=seed,
            parts=task.index.shape[0],
        ):
            sums.add(piece.x, piece.values)
        cuts.put(number, a, b)
    return (consumer.op + 1, consumer.op), sums.moment(), sums.targets()[0]


def _target(task: _Task, dense: Walk, pruned: Walk, a: Live, b: Live, residual: bool) -> Tensor:
    """What the consumer should give: shaped as its output in the pruned network."""
    consumer, other = task.consumer, task.following.other
    output = pruned.kept(consumer.output, a[consumer.output])
    if other is None or not residual:
        return output
    lacking = pruned.kept(other, a[other]) - b[other]
    if task.following.norm is None:
        return output + lacking.reshape(output.shape)
    norm, held = task.following.norm, pruned.state
    factor = (held[norm.variance] + norm.eps).rsqrt() * (held[norm.weight] if norm.weight else 1.0)
    faint = factor.abs() <= FAINT * factor.abs().max()
    scale = torch.where(faint, 0.0, 1.0 / torch.where(faint, 1.0, factor))
    return output + lacking * scale.reshape(1, -1, *[1] * (lacking.ndim - 2))


def _solve(
    task: _Task, state: dict[str, Tensor], moment: Moment, target: CrossMoment, ridge: float
) -> Solved:
    """Put the best weights and bias of a consumer into `state`."""
    consumer, norm = task.consumer, task.following.norm
    weight = state[consumer.weight]
    start = weight.flatten()[task.index].double()
    free = consumer.bias is not None or norm is not None
    held = state[consumer.bias].double() if consumer.bias and consumer.bias_inside else None
    offset = held.reshape(target.mean.shape) if held is not None else torch.zeros_like(target.mean).double()
    assert moment.second is not None
    fits, before, after, energy = [], 0.0, 0.0, 0.0
    for part in range(len(start)):
        second, mean = moment.second[part], moment.mean[part]
        goal = CrossMoment(target.cross[part], target.mean[part], target.energy[part])
        fit = least_squares(
            second,
            goal.cross,
            mean=mean if free else None,
            target_mean=goal.mean if free else None,
            prior=start[part],
            ridge=ridge,
        )
        fits.append(fit)
        before += _error(second, mean, goal, start[part], offset[part])
        after += _error(second, mean, goal, fit.weight, fit.bias)
        energy += float((goal.energy - goal.mean**2 if free else goal.energy).sum())
    solved = torch.stack([fit.weight for fit in fits])
    flat = weight.flatten().clone()
    flat[task.index.flatten()] = solved.flatten().to(flat.dtype)
    state[consumer.weight] = flat.reshape(weight.shape)
    bias = torch.cat([fit.bias for fit in fits])
    if consumer.bias is not None:
        old = state[consumer.bias]
        state[consumer.bias] = (bias if consumer.bias_inside else old.double() + bias).to(old.dtype)
    elif norm is not None:
        old = state[norm.mean]
        state[norm.mean] = (old.double() - bias).to(old.dtype)
    scale = max(energy, torch.finfo(torch.float64).tiny)
    return Solved(consumer.name, consumer.weight, before / scale, after / scale)


def _error(second: Tensor, mean: Tensor, goal: CrossMoment, weight: Tensor, bias: Tensor) -> float:
    """`E|t - V x - b|²` summed over the outputs."""
    b = bias.double()
    energy = goal.energy.double() - 2 * b * goal.mean.double() + b * b
    return float(
        squared_error(second, goal.cross.double() - torch.outer(b, mean.double()), energy, weight).sum()
    )


def solved_names(solved: Iterable[Solved]) -> list[str]:
    """The weights that were solved for."""
    return [one.weight for one in solved]
