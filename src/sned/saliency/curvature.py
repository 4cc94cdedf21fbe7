"""What cuts do to the network's answers, told for all groups at once from one gradient an input.

Where the loss of units is felt by the consumers that read them and by nothing else, a cut changes only what these give,
by `d`, and the answers move by

    KL(dense || cut) = E[(gᵀ d)²] / 2 + O(d³)

with `g` the gradient, by the consumers' outputs, of the logarithm of the probability of a class that is drawn from the
dense answers: their Fisher information, carried back to the outputs. The product is summed over all consumers of the
group before it is squared. For answers that are no classes the class is a direction drawn at random, and the squared
error relative to the variance takes the place of the divergence.

So two passes and one backwards serve all groups and points of the curves, where `sensitivity.py` runs the network once
for each of them. On a trained ResNet-56 the two agree to a factor of 1.5 (one standard deviation), even where three
quarters of a layer go; what the latter tells from 4 inputs, which is all that a ResNet-50 leaves time for, is off by 2.

Reference: Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018, where a unit is set to
zero; here `d` is what least squares leaves of its loss. That the Fisher information is the curvature of the divergence:
Martens, New insights and perspectives on the natural gradient method, 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from sned.calibration import Consumer
from sned.calibration.divergence import temperature
from sned.calibration.moments import WIDEST
from sned.calibration.patches import inputs_within
from sned.calibration.spool import Spool
from sned.calibration.walk import Walk
from sned.graph.example import Inputs, arguments, tensors_in
from sned.graph.ir import Graph, Group, Op
from sned.graph.replay import Replay
from sned.saliency.mending import mended
from sned.saliency.reconstruction import normalised
from sned.saliency.registry import Evidence, State
from sned.saliency.scores import Scores, least_important
from sned.saliency.sensitivity import HOPELESS, POINTS, Sensitivity, counts_at
from sned.saliency.touched import along

INPUTS = 32, 1024
"""Calibration inputs that answer: as many as `MACS` go, within these bounds."""

MACS = 5.0e11
"""Multiply-accumulates that all of it may take: some seconds on two cores."""

PASSES = 4
"""Passes over an input that this takes beside one for each point: there, back (which is two), and there again."""

HELD = 2**28
"""Bytes of activations that are held for the way back."""


def curvatures(
    evidence: Evidence, scores: Scores, *, points: Sequence[float] = POINTS, inputs: int | None = None
) -> dict[str, Sensitivity]:
    """How far the answers move when each group alone is cut at some points of its order and mended.

    Args:
        evidence: with a calibration.
        scores: say which units go.
        points: fractions of the units of a group, in (0, 1).
        inputs: how many calibration inputs answer, at least 1; as many as `MACS` allows, 32 to 1,024, when None.

    Returns:
        `{group: Sensitivity}` of those groups that their readers alone feel (`read_alone`), or of none where PyTorch
        cannot derive the answers.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    groups = read_alone(graph, calibration.consumers)
    counts = {group.name: counts_at(group, points) for group in groups}
    each = (PASSES + len(points)) * calibration.macs
    count = min(inputs_within(MACS, each, *INPUTS) if inputs is None else inputs, calibration.count)
    count = count if graph.batched else max(count - count % graph.batch, graph.batch)
    slot = calibration.resume.slot("curvatures", counts, scores.order, count)
    found = {name: values.numpy() for name, values in slot.found.items()}
    if not found and groups:
        found = _measured(evidence, scores, groups, counts, count)
        slot.close(lambda: {name: torch.from_numpy(values) for name, values in found.items()})
    return {name: Sensitivity(counts[name], values) for name, values in found.items()}


def read_alone(graph: Graph, consumers: Sequence[Consumer]) -> list[Group]:
    """The groups whose loss is felt by the consumers that read them and by nothing else: removing units equals setting
    them to zero, and wherever their axis ends, it ends in a consumer whose weights can answer for them."""
    readers: dict[int, set[int]] = {}
    unable: set[int] = set()
    for consumer in consumers:
        of = {read.group for read in consumer.reads}
        if consumer.kind != "depthwise":
            for group in of:
                readers.setdefault(group, set()).add(consumer.op)
            if consumer.shared or consumer.width > WIDEST:
                unable |= of
    ends = _ends(graph)
    return [
        group
        for group in graph.groups
        if group.exact
        and group.index not in unable
        and readers.get(group.index, set()) == ends.get(group.index, set()) != set()
    ]


def _ends(graph: Graph) -> dict[int, set[int]]:
    """For each group the ops that read an axis of it and make nothing that has one."""
    ends: dict[int, set[int]] = {}
    for op in graph.ops:
        read = set().union(*(along(graph, number) for number in op.inputs))
        made = set().union(*(along(graph, number) for number in op.outputs if number is not None))
        for group in read - made:
            ends.setdefault(group, set()).add(op.index)
    return ends


def _measured(
    evidence: Evidence,
    scores: Scores,
    groups: Sequence[Group],
    counts: Mapping[str, tuple[int, ...]],
    count: int,
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    graph, calibration = evidence.graph, evidence.learnt
    cuts = [_Cut(group, removed) for group in groups for removed in counts[group.name]]
    total = torch.zeros(len(cuts), dtype=torch.float64)
    with (
        Spool() as changes,
        evidence.progress.task("sensitivities", total=len(cuts) + count) as advance,
    ):
        for place, cut in enumerate(cuts):
            changes.put(place, cut.mended(evidence, scores))
            advance(1)
        look = _Look(evidence, cuts, changes)
        pull = _Pull(calibration.outputs(0, count), evidence.seed)
        for inputs in calibration.batches(0, count, size=_batch(graph, calibration.batch)):
            try:
                back = look.gradients(inputs, pull)
            except (RuntimeError, NotImplementedError):  # an op that PyTorch cannot derive
                return {}
            for place, moved in look.products(inputs, back).items():
                total[place] += moved.double().square().sum().cpu() / 2
            advance(len(tensors_in(arguments(inputs))[0]))
    values = np.clip(np.nan_to_num((total / count).numpy(), nan=HOPELESS, posinf=HOPELESS), 0.0, HOPELESS)
    return {
        group.name: np.array([values[place] for place, cut in enumerate(cuts) if cut.group is group])
        for group in groups
    }


def _batch(graph: Graph, usual: int) -> int:
    """Inputs whose activations are held at once."""
    if not graph.batched:
        return graph.batch
    made = {number for op in graph.ops for number in op.outputs if number is not None}
    each = sum(prod(graph.tensors[number].shape) for number in made) / graph.batch
    return max(1, min(usual, int(HELD // (4 * max(each, 1)))))


@dataclass(frozen=True, eq=False)
class _Cut:
    """So many units of a group gone."""

    group: Group
    removed: int

    def mended(self, evidence: Evidence, scores: Scores) -> State:
        """The weights of the group's readers that answer for them."""
        units = least_important(self.group, scores.order[self.group.name], self.removed).tolist()
        gone = {self.group.index: units}
        return mended(evidence.graph, gone, evidence.learnt, evidence.state, of=gone)


class _Pull:
    """A number to derive: the probability of what is drawn from the dense answers.

    Args:
        dense: the dense network's outputs for all inputs.
        seed: of the draws.
    """

    def __init__(self, dense: Sequence[Tensor], seed: int) -> None:
        self._scales = [self._scale(output) if output.is_floating_point() else 0.0 for output in dense]
        self._generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def _classes(output: Tensor) -> bool:
        return output.ndim == 2 and output.shape[1] > 1

    def _scale(self, output: Tensor) -> float:
        if self._classes(output):
            return temperature(output.double())
        spread = float(output.double().var(correction=0)) or float(output.double().square().mean()) or 1.0
        return float((spread * output[:1].numel()) ** 0.5)

    def __call__(self, outputs: Sequence[Tensor]) -> Tensor:
        """Summed over the inputs of a batch, which do not act on each other."""
        pairs = zip(outputs, self._scales, strict=True)
        return torch.stack([self._drawn(output, scale) for output, scale in pairs if scale]).sum()

    def _drawn(self, output: Tensor, scale: float) -> Tensor:
        if not self._classes(output):
            way = torch.randn(output.shape, generator=self._generator).to(output)
            return (way * output).sum() / scale
        logs = (output / scale).log_softmax(1)
        drawn = torch.multinomial(logs.detach().cpu().double().exp(), 1, generator=self._generator)
        return logs.gather(1, drawn.to(logs.device)).sum()


class _Look:
    """A batch at a time: the gradients by what consumers give, and their products with what cuts change of it."""

    def __init__(self, evidence: Evidence, cuts: Sequence[_Cut], changes: Spool) -> None:
        self._graph, self._changes = evidence.graph, changes
        self._replay = Replay(evidence.graph, evidence.state)
        self._walk = Walk(evidence.graph, evidence.state)
        self._consumers = {c.op: c for c in evidence.learnt.consumers if c.kind != "depthwise"}
        self._cuts = {
            op: [
                place for place, cut in enumerate(cuts) if cut.group.index in {read.group for read in c.reads}
            ]
            for op, c in self._consumers.items()
        }

    def gradients(self, inputs: Inputs, pull: Callable[[Sequence[Tensor]], Tensor]) -> dict[int, Tensor]:
        """`{consumer's op: gradient}` of a batch, shaped as the consumer's output."""
        added: dict[int, Tensor] = {}

        def after(op: Op, live: dict[int, Tensor]) -> None:
            if self._cuts.get(op.index):
                number = self._consumers[op.index].output
                added[op.index] = torch.zeros_like(live[number], requires_grad=True)
                live[number] = live[number] + added[op.index]  # what is written into it later is no matter

        with torch.enable_grad():
            outputs, _ = self._replay.run(inputs, after=after)
            found = torch.autograd.grad(pull(outputs), list(added.values()), allow_unused=True)
        return {op: gradient for op, gradient in zip(added, found, strict=True) if gradient is not None}

    def products(self, inputs: Inputs, back: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """`{cut: [inputs]}`: the gradient times what the cut changes, over all that a consumer gives, and over all
        consumers."""
        rows = len(tensors_in(arguments(inputs))[0])
        moved: dict[int, Tensor] = {}

        def after(op: Op, live: dict[int, Tensor]) -> None:
            if op.index in back:
                for place, change in self._changed(self._consumers[op.index], live, rows):
                    one = _by_input(change.mul_(back[op.index]), rows)
                    moved[place] = moved[place] + one if place in moved else one

        with torch.no_grad():
            self._replay.run(inputs, after=after)
        return moved

    def _changed(
        self, consumer: Consumer, live: dict[int, Tensor], rows: int
    ) -> Iterator[tuple[int, Tensor]]:
        """For each cut of what a consumer reads the change of its output."""
        x, y = live[consumer.input], live[consumer.output]
        names = [consumer.weight, *([consumer.bias] if consumer.bias and consumer.bias_inside else [])]
        for place in self._cuts[consumer.op]:
            new = self._changes.look(place)
            self._walk.state.update({name: new[name] for name in names})
            given = self._walk.ahead({consumer.input: x}, rows, consumer.output, consumer.op, consumer.op + 1)
            change = given - y
            if (shift := self._shift(consumer, new)) is not None:
                change += shift.reshape([-1 if a == consumer.axis else 1 for a in range(y.ndim)])
            yield place, change

    def _shift(self, consumer: Consumer, new: State) -> Tensor | None:
        """What a late bias, or the mean that a normalisation takes off, adds to an output."""
        if consumer.bias is not None:
            late = consumer.bias in new and not consumer.bias_inside
            return new[consumer.bias] - self._walk.state[consumer.bias] if late else None
        mean = next((name for name in normalised(self._graph).get(consumer.output, ()) if name in new), None)
        return None if mean is None else self._walk.state[mean] - new[mean]


def _by_input(product: Tensor, rows: int) -> Tensor:
    """Summed for each input. Where these do not lie one behind the other the sum over all stands for them: gradients of
    different inputs are drawn independently, so that its square is as large on average."""
    if product.ndim and product.shape[0] % rows == 0:
        return product.reshape(rows, -1).sum(1)
    return torch.cat([product.sum()[None], product.new_zeros(rows - 1)])
