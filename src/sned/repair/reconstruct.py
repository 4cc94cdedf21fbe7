"""Sequential least squares: front to back, every consumer answers for what was removed before it.

Each consumer of the pruned network is solved for on the activations that the pruned and already repaired
network gives it, against what the same op of the dense network made of the same inputs:

    min over V, b of  E | t - V x' - b |² + ridge * |V - W|²

with `x'` the patches in the pruned network, `W` the weights cut to what remains, and `t` what the consumer
should give so that what follows it comes out right (`targets.py`): the dense output, what the shortcut
lacks, and only what an activation function lets through. A consumer without a bias leaves `b` to the
BatchNorm that follows, as `mean - b`.

Weights that several ops read, as in recurrent layers, are solved for before all others, on the dense network's
activations (`saliency/mending.py`). On digits read row by row this leaves a seventh to a half of the divergence that
is left where they stay as they were cut; solved for in their turn they left more than before, since the states of the
network that they were fitted to change with them.

Both networks advance together on a live cut of the inputs (`front.py`), so that the whole costs two forward passes;
each further round looks at columns that were kept.

Reference: layer-wise reconstruction on the pruned network's inputs is that of He et al., Channel Pruning
for Accelerating Very Deep Neural Networks, 2017, section 3.2; the asymmetric target behind a ReLU that of
Zhang et al., Accelerating Very Deep Convolutional Networks, 2015, section 3. Ours differs in the shortcut,
in the moments that all positions enter, and in majorisation in place of their auxiliary variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sned.calibration import Calibration, Consumer
from sned.calibration.calibrate import patch_seed
from sned.calibration.consumers import consumers, layout
from sned.calibration.moments import WIDEST, CrossMoment, Moment, Sums
from sned.calibration.patches import Columns, chunks, share_of
from sned.calibration.resume import Resume, Slot
from sned.calibration.solver import RIDGE, Fit, LeastSquares, squared_error
from sned.calibration.spool import Spool
from sned.calibration.thinning import held
from sned.calibration.walk import Walk
from sned.errors import ModelError
from sned.graph.ir import Graph
from sned.graph.plan import Plan
from sned.graph.replay import Replay, State, keep_of
from sned.graph.sizes import Sizes
from sned.memory import trim
from sned.progress import SILENT, Progress
from sned.repair.following import Following, followings
from sned.repair.front import Front, Place
from sned.repair.targets import Target, free_parameter
from sned.saliency.mending import mended_together


@dataclass(frozen=True)
class Options:
    """How to reconstruct.

    Attributes:
        ridge: relative to the mean of the diagonal of the moments.
        rounds: further looks at each consumer that an activation function follows, which ask for the right
            answer only where the activation function lets it through.
        thin: (consumer, which entries the masks of the plan let stay, its best weights `[outputs, width]`, moments
            `[width, width]` of what enters it) -> the weights with zeros; None puts none beside those of the masks.
    """

    ridge: float = RIDGE
    rounds: int = 1
    thin: Callable[[Consumer, Tensor, Tensor, Tensor], Tensor] | None = None


STANDARD = Options()


@dataclass(frozen=True)
class Solved:
    """One consumer, solved for.

    Attributes:
        op, name, weight: which one.
        before, after: squared error of its output with the cut and with the solved weights, on the
            activations of the repaired network before it, relative to the variance of what is wanted.
        width, patches: entries of a patch, and how many patches there were.
    """

    op: int
    name: str
    weight: str
    before: float
    after: float
    width: int
    patches: int


@dataclass(frozen=True)
class _Task:
    """A consumer with all that solving for it takes."""

    consumer: Consumer
    following: Following
    dense: Place
    index: Tensor = field(repr=False)
    masks: Mapping[str, Tensor] = field(repr=False)

    @property
    def places(self) -> tuple[Place, Place]:
        """Where it stands in the dense and in the pruned network."""
        return self.dense, Place.of(self.consumer, self.following)


def reconstruct(
    graph: Graph,
    state: State,
    plan: Plan,
    calibration: Calibration,
    *,
    whole: Replay | None = None,
    count: int | None = None,
    options: Options = STANDARD,
    progress: Progress = SILENT,
    workdir: Path | None = None,
) -> tuple[dict[str, Tensor], tuple[Solved, ...]]:
    """Solve for every consumer of a pruned network in turn.

    Args:
        graph: what `sned.trace` made of the dense network.
        state: its parameters and buffers by name.
        plan: what is removed, and the masks that the solved weights keep to.
        calibration: gives the inputs.
        whole: what each consumer is to answer like, where that is not the dense network itself: one with the same
            weights, by name, and more layers.
        count: how many of its inputs to use, from the first; all when None.
        options: see `Options`.
        progress: shown while it runs.
        workdir: where activations are spooled to when there are many.

    Returns:
        Parameters and buffers of the pruned network, and what each consumer gained.
    """
    units = {group.index: plan.removed.get(group.name, ()) for group in graph.groups}
    start = {**state, **mended_together(graph, units, calibration, state)}
    dense = Walk(graph, state) if whole is None else Walk(whole.graph, whole.state)
    pruned = Walk(graph, start, plan)
    pruned.state.update({name: t.detach().clone() for name, t in pruned.state.items()})
    slot = _slot(calibration.resume, dense.graph, plan, count, options)
    solved = _restored(slot.found, calibration, pruned)
    if solved:
        calibration.resume.resumed("repair of layers", len(solved), len(calibration.consumers))
    with (
        Front(dense, pruned, calibration, count or calibration.count, workdir) as front,
        Spool(workdir) as columns,
        progress.task("repairing layers", total=len(calibration.consumers)) as advance,
    ):
        if solved:
            advance(len(solved))
        for task in _tasks(graph, plan, calibration, dense.graph):
            if task.consumer.op in solved:
                continue
            target = Target(task.consumer, task.following, len(task.index), task.dense, pruned)
            scene = _Scene(task, target, pruned, columns, options)
            if scene.reach(front, graph):
                solved[task.consumer.op] = scene.solve()
                slot.offer(partial(_held, solved, pruned))
            elif options.thin is not None:
                raise _other_rows(task.consumer)
            trim()
            advance(1)
    slot.close(partial(_held, solved, pruned))
    return pruned.state, tuple(solved.values())


def _slot(resume: Resume, dense: Graph, plan: Plan, count: int | None, options: Options) -> Slot:
    """Where what was solved so far is kept; not where a function says what becomes of the weights."""
    if options.thin is not None:
        return Slot(None)
    return resume.slot("repair", dense.fingerprint, plan.to_json(), count, options.ridge, options.rounds)


def _held(solved: Mapping[int, Solved], pruned: Walk) -> dict[str, Tensor]:
    """All that `_restored` takes to go on: the state so far, and what each consumer gained."""
    told = {f"solved/{s.op}": _row(s) for s in solved.values()}
    return told | {f"state/{name}": tensor.contiguous() for name, tensor in pruned.state.items()}


def _row(solved: Solved) -> Tensor:
    return torch.tensor([solved.before, solved.after, solved.width, solved.patches], dtype=torch.float64)


def _restored(found: Mapping[str, Tensor], calibration: Calibration, pruned: Walk) -> dict[int, Solved]:
    """The consumers that an interrupted run solved for, their weights put into the state.

    Ahead of its turn no op reads the weight of a consumer or the mean that follows it, so all can be put there
    at once.
    """
    pruned.state.update(
        {n: found[f"state/{n}"].to(t.device) for n, t in pruned.state.items() if f"state/{n}" in found}
    )
    solved = {}
    for consumer in calibration.consumers:
        told = found.get(f"solved/{consumer.op}")
        if told is not None:
            before, after, width, patches = told.tolist()
            solved[consumer.op] = Solved(
                consumer.op, consumer.name, consumer.weight, before, after, int(width), int(patches)
            )
    return solved


def _tasks(graph: Graph, plan: Plan, calibration: Calibration, dense: Graph) -> Iterator[_Task]:
    """The consumers that can be solved for: no other op reads their weight, one reads what they give, the same follows
    as in the dense network, and they are not too wide."""
    sizes = Sizes(graph, keep_of(graph, plan))
    after = followings(graph, calibration.consumers)
    there = {c.op: (c, after[c.op]) for c in calibration.consumers}
    if dense is not graph:
        there = dict(_counterparts(there.values(), dense))
    masks = {name: torch.from_numpy(mask) for name, mask in plan.masks.items()}
    for consumer in calibration.consumers:
        if consumer.shared or consumer.output not in graph.read:
            continue
        index = layout(graph, sizes, consumer)
        if index.shape[2] <= WIDEST and consumer.op in there:
            yield _Task(consumer, after[consumer.op], Place.of(*there[consumer.op]), index, masks)


_Placed = tuple[Consumer, Following]


def _counterparts(placed: Iterable[_Placed], dense: Graph) -> Iterator[tuple[int, _Placed]]:
    """By the op of each consumer, the one of the same weight in a network with more layers, where the same follows."""
    found = consumers(dense)
    after = followings(dense, found)
    by_weight = {consumer.weight: (consumer, after[consumer.op]) for consumer in found}
    for consumer, following in placed:
        other = by_weight.get(consumer.weight)
        if other is not None and _kind(following) == _kind(other[1]):
            yield consumer.op, other


def _kind(following: Following) -> tuple[Any, ...]:
    """What follows, whatever the tensors and ops are called."""
    summed = following.other is not None
    return summed, len(following.line), following.order, following.low, following.high


class _Scene:
    """One consumer with both networks brought up to it."""

    def __init__(self, task: _Task, target: Target, pruned: Walk, columns: Spool, options: Options) -> None:
        self._task = task
        self._target = target
        self._columns = columns
        self._options = options
        self._looks = options.rounds if task.following.clamped else 0
        self._sums = Sums()
        self._pruned = pruned
        self._state = pruned.state
        self._free = free_parameter(task.consumer, task.following)
        self._held = self._state[self._free] if self._free else None
        weight = self._state[task.consumer.weight]
        self._index = task.index.to(weight.device).long()
        self._start = weight.flatten()[self._index].double()

    def reach(self, front: Front, graph: Graph) -> bool:
        """Bring the networks here; sum up what enters the consumer and should come out, and keep the columns of both
        where they are looked at again. False where both are not of the same rows: values say which come here."""
        consumer, alike = self._task.consumer, True
        self._columns.clear()
        inputs = front.inputs_at(*self._task.places)
        share = share_of(consumer, graph, inputs)
        for number, dense, pruned in front.to(*self._task.places, inputs):
            x = self._pruned.value(consumer.input, pruned, front.size(number))
            for piece in self._pieces(number, x, self._target.wanted(dense, pruned), share):
                alike = alike and piece.x.shape[-1] == piece.values[0].shape[-1]
                if not alike:
                    continue
                self._sums.add(piece.x, piece.values[0])
                if self._looks:
                    columns = piece.x, piece.values[0], self._target.goal(*piece.values)
                    self._columns.put(len(self._columns), columns)
        if alike:
            self._moment = self._sums.moment()
        return alike

    def solve(self) -> Solved:
        """Put the best weights and bias of the consumer into the state."""
        parts = [self._part(part, start) for part, start in enumerate(self._start)]
        goal = self._sums.target()
        weight, bias = self._best(parts, goal)
        told = self._told(goal, weight, bias)
        self._write(weight, bias)
        for _ in range(self._looks):
            self._look_again()
            self._write(*self._best(parts, self._sums.target()))
        return told

    def _look_again(self) -> None:
        self._sums.forget_target()
        weight = self._state[self._task.consumer.weight].flatten()[self._index]
        for number in range(len(self._columns)):
            x, wanted, goal = self._columns.look(number)
            given = self._target.given(weight @ x)
            self._sums.add_target(x, self._target.again(wanted, goal, given))

    def _pieces(self, number: int, x: Tensor, values: tuple[Tensor, ...], share: float) -> Iterator[Columns]:
        consumer = self._task.consumer
        return chunks(
            consumer,
            x,
            tuple(values[0].shape[2:]) if consumer.geometry else (),
            values if self._looks else values[:1],
            share=share,
            seed=patch_seed(0, consumer, number),
            parts=len(self._index),
        )

    def _part(self, part: int, start: Tensor) -> LeastSquares:
        """What is known of the patches of one part."""
        assert self._moment.second is not None
        mean = self._moment.mean[part] if self._free else None
        return LeastSquares(self._moment.second[part], mean=mean, prior=start, ridge=self._options.ridge)

    def _best(self, parts: Sequence[LeastSquares], goal: CrossMoment) -> tuple[Tensor, Tensor]:
        """Weights `[parts, outputs, width]` and the constant `[parts, outputs]`."""
        free = self._free is not None
        fits = [each.fit(goal.cross[n], goal.mean[n] if free else None) for n, each in enumerate(parts)]
        if (zeros := self._zeros()) is not None:
            fits = [
                _thinned(fit, self._moment, goal, part, free, zeros[part]) for part, fit in enumerate(fits)
            ]
        return torch.stack([fit.weight for fit in fits]), torch.stack([fit.bias for fit in fits])

    def _zeros(self) -> list[Callable[[Tensor, Tensor], Tensor]] | None:
        """What puts zeros into the weights of each part: those of the mask, and those that are asked for."""
        mask = self._task.masks.get(self._task.consumer.weight)
        if self._options.thin is not None:
            stay = torch.ones_like(self._start, dtype=torch.bool) if mask is None else self._parts(mask)
            return [partial(self._options.thin, self._task.consumer, part) for part in stay]
        if mask is None:
            return None
        return [partial(held, part, ridge=self._options.ridge) for part in self._parts(mask)]

    def _parts(self, mask: Tensor) -> Tensor:
        return mask.to(self._index.device).flatten()[self._index]

    def _told(self, goal: CrossMoment, weight: Tensor, bias: Tensor) -> Solved:
        """What the solution gains over the weights as they were cut."""
        moment = self._moment
        before = _error(moment, goal, self._start, self._offset(bias))
        after = _error(moment, goal, weight, bias)
        energy = float((goal.energy - goal.mean**2 if self._free else goal.energy).sum())
        scale = max(energy, torch.finfo(torch.float64).tiny)
        consumer = self._task.consumer
        return Solved(
            op=consumer.op,
            name=consumer.name,
            weight=consumer.weight,
            before=before / scale,
            after=after / scale,
            width=self._start.shape[2],
            patches=moment.count,
        )

    def _offset(self, like: Tensor) -> Tensor:
        """The bias that the recorded output held to begin with."""
        if self._held is None or not self._task.consumer.bias_inside:
            return torch.zeros_like(like)
        return self._held.double().reshape(like.shape)

    def _write(self, weight: Tensor, bias: Tensor) -> None:
        """Put weights `[parts, outputs, width]` and the constant `[parts, outputs]` where they belong."""
        consumer = self._task.consumer
        old = self._state[consumer.weight]
        flat = old.flatten().clone()
        flat[self._index.flatten()] = weight.flatten().to(flat.dtype)
        self._state[consumer.weight] = flat.reshape(old.shape)
        if self._free is None or self._held is None:
            return
        start = self._held.double() if not consumer.bias_inside else torch.zeros_like(self._held).double()
        gained = bias.flatten() if consumer.bias else -bias.flatten()
        value, mask = (start + gained).to(self._held.dtype), self._task.masks.get(self._free)
        self._state[self._free] = value if mask is None else value * mask.to(value.device)


def _other_rows(consumer: Consumer) -> ModelError:
    return ModelError(
        f"The rows that enter a layer must not depend on values, but {consumer.name!r} gets others in the changed "
        "network than in the dense one, from the same inputs (a router that picks rows for experts does that). Let "
        "each expert take all rows and weigh its answers, or prune without calibration inputs."
    )


def _thinned(
    fit: Fit,
    moment: Moment,
    goal: CrossMoment,
    part: int,
    free: bool,
    thin: Callable[[Tensor, Tensor], Tensor],
) -> Fit:
    """The fit with zeros in its weights, and the bias that suits them."""
    assert moment.second is not None
    second, mean = moment.second[part].double(), moment.mean[part].double()
    if not free:
        return Fit(thin(fit.weight, second), fit.bias, fit.ridge)
    weight = thin(fit.weight, second - torch.outer(mean, mean))
    return Fit(weight, goal.mean[part].double() - weight @ mean, fit.ridge)


def _error(moment: Moment, goal: CrossMoment, weight: Tensor, bias: Tensor) -> float:
    """`E|t - V x - b|²` summed over all outputs."""
    assert moment.second is not None
    energy = goal.energy.double() - 2 * bias * goal.mean.double() + bias**2
    cross = goal.cross.double() - bias[:, :, None] * moment.mean.double()[:, None]
    return float(squared_error(moment.second, cross, energy, weight).sum())
