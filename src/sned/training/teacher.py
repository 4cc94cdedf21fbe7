"""A teacher's answers, and a cache of them for data that do not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sned.graph.example import called
from sned.progress import Progress
from sned.training.data import Batch, InMemory
from sned.training.features import Match, captured, first
from sned.training.tasks import first_output


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


def probabilities(output: object) -> Tensor | None:
    """The attention probabilities `[n, heads, queries, keys]` or `[n, queries, keys]` that a module returned beside
    its output; None where it returned none."""
    if not isinstance(output, tuple) or len(output) < 2:
        return None
    second = output[1]
    return second if isinstance(second, Tensor) and second.ndim in (3, 4) else None


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
        features = tuple(match.of(first(inside.get(match.teacher), match.teacher)) for match in self.matches)
        held = {path: probabilities(inside.get(path)) for path in self.attends}
        return Answers(output, features, {path: p for path, p in held.items() if p is not None})


class Cached(Teacher):
    """A teacher whose answers to all of the data are there already."""

    def __init__(self, source: Teacher, answers: Answers) -> None:
        super().__init__(source.model, source.matches, source.attends)
        self.answers = answers

    def __call__(self, batch: Batch) -> Answers:
        """The answers to one batch."""
        rows = batch.rows
        if rows is None:
            return super().__call__(batch)
        return Answers(
            self.answers.output[rows],
            tuple(part[rows] for part in self.answers.features),
            {path: part[rows] for path, part in self.answers.probabilities.items()},
        )


def cached(teacher: Teacher, data: object, size: int, limit: int, progress: Progress) -> Teacher:
    """The teacher, asked once about all of the data where they stay as they are and its answers take at most `limit`
    bytes. In an order of its own: a run that is resumed gets bitwise the same answers.

    Args:
        size: of the batches that it is asked about.
    """
    if not isinstance(data, InMemory) or not data.fixed:
        return teacher
    parts: list[Answers] = []
    with progress.task("asking the teacher", total=data.count) as advance:
        for start in range(0, data.count, size):
            stop = min(start + size, data.count)
            inputs = pytree.tree_map(lambda t, start=start, stop=stop: t[start:stop], data.inputs)
            parts.append(teacher(Batch(inputs, None, stop - start)))
            if _bytes(parts[0]) / (min(size, data.count)) * data.count > limit:
                return teacher
            advance(stop - start)
    joined = Answers(
        torch.cat([part.output for part in parts]),
        tuple(torch.cat(list(each)) for each in zip(*(part.features for part in parts), strict=True)),
        {path: torch.cat([part.probabilities[path] for part in parts]) for path in parts[0].probabilities},
    )
    return Cached(teacher, joined)


def _bytes(answers: Answers) -> int:
    tensors = (answers.output, *answers.features, *answers.probabilities.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
