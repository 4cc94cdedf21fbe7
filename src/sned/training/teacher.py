"""A teacher's answers, and a cache of them for data that do not change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sned.graph.example import called
from sned.graph.recording import BATCHES
from sned.progress import Progress
from sned.training.data import Batch, InMemory
from sned.training.features import Match
from sned.training.handing import captured, grown
from sned.training.memory import is_memory_error
from sned.training.tasks import first_output

ROUNDING = 0.05
"""How far half precision may take a sum of probabilities from 1."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a teacher says to a batch.

    Attributes:
        output: its first output.
        features: what the modules that are compared hand on, without what the student lost.
        probabilities: attention probabilities by module, of those that return them.
    """

    output: Tensor
    features: tuple[Tensor, ...] = ()
    probabilities: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them in order."""
        return (self.output, *self.features, *self.probabilities.values())

    def of(self, tensors: Iterable[Tensor]) -> Answers:
        """Answers like these of other tensors, in the same order."""
        given = iter(tensors)
        output, features = next(given), tuple(islice(given, len(self.features)))
        return Answers(output, features, dict(zip(self.probabilities, given, strict=True)))


def probabilities(output: object) -> Tensor | None:
    """The attention probabilities `[n, heads, queries, keys]` or `[n, queries, keys]` that a module returned beside
    its output; None where it returned none."""
    if not isinstance(output, tuple) or len(output) < 2:
        return None
    second = output[1]
    return second if isinstance(second, Tensor) and second.ndim in (3, 4) else None


def are_probabilities(values: Tensor | None) -> bool:
    """Whether each query shares out 1 over its keys (0, where all are masked): keys in a cache do not."""
    if values is None or not values.is_floating_point():
        return False
    sums = values.float().sum(-1)
    shared = torch.minimum((sums - 1).abs(), sums.abs()) < ROUNDING
    return bool((values >= 0).all() and shared.all() and (sums > ROUNDING).any())


class Teacher:
    """Asks the teacher itself.

    Args:
        model: in evaluation mode; it is not trained.
        matches: what is compared inside.
        attends: modules that may return attention probabilities.
    """

    def __init__(
        self, model: nn.Module, matches: tuple[Match, ...] = (), attends: tuple[str, ...] = ()
    ) -> None:
        self.model, self.matches, self.attends = model, matches, attends

    def __call__(self, batch: Batch) -> Answers:
        """The answers to one batch."""
        with (
            torch.no_grad(),
            captured(self.model, [*(m.teacher for m in self.matches), *self.attends]) as inside,
        ):
            output = first_output(called(self.model, batch.inputs))
        features = tuple(match.of(inside.get(match.teacher)) for match in self.matches)
        held = {path: probabilities(inside.get(path)) for path in self.attends}
        return Answers(output, features, {path: p for path, p in held.items() if p is not None})


class Cached(Teacher):
    """A teacher whose answers to all of the data are there already.

    Args:
        answers: to all of the data, inputs along the first axis.
        axes: those of inputs in what the teacher itself answers.
    """

    def __init__(self, source: Teacher, answers: Answers, axes: Sequence[int]) -> None:
        super().__init__(source.model, source.matches, source.attends)
        self.answers, self.axes = answers, axes

    def __call__(self, batch: Batch) -> Answers:
        """The answers to one batch."""
        rows = batch.rows
        if rows is None:
            return super().__call__(batch)
        held = zip(self.answers.tensors, self.axes, strict=True)
        return self.answers.of(part[rows].movedim(0, axis) for part, axis in held)


def cached(teacher: Teacher, data: object, size: int, limit: int, progress: Progress) -> Teacher:
    """The teacher, asked once about all of the data where they stay as they are and its answers take at most `limit`
    bytes. In an order of its own: a run that is resumed gets bitwise the same answers.

    Args:
        size: of the batches that it is asked about.
    """
    if not isinstance(data, InMemory) or not data.fixed:
        return teacher
    axes = _axes(teacher, data)
    if axes is None:
        return teacher
    parts: list[Answers] = []
    with progress.task("asking the teacher", total=data.count) as advance:
        for start in range(0, data.count, size):
            stop = min(start + size, data.count)
            told = _asked(teacher, data, start, stop)
            parts.append(told.of(t.movedim(axis, 0) for t, axis in zip(told.tensors, axes, strict=True)))
            if _bytes(parts[0]) / (min(size, data.count)) * data.count > limit:
                return teacher
            advance(stop - start)
    joined = zip(*(part.tensors for part in parts), strict=True)
    return Cached(teacher, parts[0].of(torch.cat(list(each)) for each in joined), axes)


def _asked(teacher: Teacher, data: InMemory, start: int, stop: int) -> Answers:
    inputs = pytree.tree_map(lambda tensor: tensor[start:stop], data.inputs)
    return teacher(Batch(inputs, None, stop - start))


def _axes(teacher: Teacher, data: InMemory) -> list[int] | None:
    """The axis along which each of the answers has one row an input; None where one has none, or none that can be told:
    with several rows an input, their order is not known."""
    few, many = BATCHES
    if data.count < many:
        return None
    try:
        pairs = zip(
            _asked(teacher, data, 0, few).tensors, _asked(teacher, data, 0, many).tensors, strict=True
        )
    except Exception as error:
        if is_memory_error(error):
            raise
        return None  # the user's forward may take one batch size only, and raise anything
    found = [grown(a.shape, b.shape) for a, b in pairs]
    axes = [rows.axis for rows in found if rows is not None and rows.each == 1]
    return axes if len(axes) == len(found) else None


def _bytes(answers: Answers) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in answers.tensors)
