"""Learn from a teacher: its soft answers, its features, where it looks, and how its inputs lie to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned.errors import ModelError, UserError
from sned.graph.example import Inputs, called
from sned.training.data import Batch
from sned.training.features import Match, matched
from sned.training.handing import captured
from sned.training.objectives import LABEL, LabelLoss
from sned.training.tasks import Task, first_output
from sned.training.teacher import Teacher, are_probabilities, probabilities

TINY = 1e-12
"""Added to norms that are divided by."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Weights of the terms of the loss, and what they need.

    Attributes:
        labels: of the label loss; 0 trains without labels.
        logits: of the difference between the answers at `temperature`, times its square (numbers: squared error).
        temperature: of both softmaxes, above 0.
        features: of the squared difference of features, relative to the teacher's energy.
        attention: of the squared difference of attention maps: where the energy of features lies, and, where modules
            return attention probabilities, those.
        relations: of the difference of distances between the inputs of a batch, in the last of the layers.
        layers: modules whose outputs are features, or pairs (the student's, the teacher's); by default the last of each
            stage.
        cache_bytes: the teacher's answers to data in memory are kept up to this size, in place of asking it each epoch.

    Raises:
        UserError: a weight is negative, all are 0, or the temperature is not above 0.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Romero et al., FitNets, 2015;
        Zagoruyko and Komodakis, Paying More Attention to Attention, 2017; Park et al., Relational Knowledge
        Distillation, 2019 (the distance-wise loss).
    """

    labels: float = 0.1
    logits: float = 0.9
    temperature: float = 4.0
    features: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    layers: tuple[str | tuple[str, str], ...] | None = None
    cache_bytes: int = 2**30

    def __post_init__(self) -> None:
        weights = {
            name: getattr(self, name) for name in ("labels", "logits", "features", "attention", "relations")
        }
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UserError(
                    f"`{name}` of a distillation must be a finite weight of at least 0, got {weight!r}."
                )
        if not any(weights.values()):
            raise UserError(
                "A distillation minimises something: give at least one of its terms a weight above 0."
            )
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"`temperature` must be a finite number above 0, got {self.temperature!r}.")

    @property
    def looks_inside(self) -> bool:
        """Whether more than answers is compared."""
        return bool(self.features or self.attention or self.relations)


# --- the terms -------------------------------------------------------------------------------------------------------


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² KL(softmax(teacher / T) ‖ softmax(student / T))`, a mean over rows `[n, classes]`."""
    logs = F.log_softmax(student.float() / temperature, -1)
    wanted = F.log_softmax(teacher.float() / temperature, -1)
    return F.kl_div(logs, wanted, log_target=True, reduction="sum") / max(len(logs), 1) * temperature**2


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`‖student - teacher‖² / ‖teacher‖²`, of tensors of one shape."""
    return (student - teacher).float().square().mean() / teacher.float().square().mean().clamp(min=TINY)


def attention_map(features: Tensor, channels: int) -> Tensor:
    """`[n, positions]`: the mean square over channels, scaled to a norm of 1 for every input.

    Raises:
        ModelError: the features have no positions.
    """
    if features.ndim < 3:
        raise ModelError(
            f"An attention map says where features are strong, but features of shape {list(features.shape)} have no "
            "positions. Use `features` or `relations`, or name other `layers`."
        )
    energy = features.float().square().mean(channels).flatten(1)
    return F.normalize(energy, dim=1, eps=TINY)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two attention maps `[n, positions]`, a mean over inputs."""
    return (student - teacher).square().sum(1).mean()


def distances(embedded: Tensor) -> Tensor:
    """`[n, n]`: Euclidean distances of rows, relative to their mean over the pairs that differ."""
    flat = embedded.float().flatten(1)
    square = flat.square().sum(1)
    found = (square[:, None] + square - 2 * flat @ flat.T).clamp(min=TINY).sqrt()
    found = found * (1 - torch.eye(len(flat), device=flat.device))
    return found / (found.sum() / max(len(flat) * (len(flat) - 1), 1)).clamp(min=TINY)


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the relative distances of a batch's inputs; widths may differ."""
    return F.smooth_l1_loss(distances(student), distances(teacher))


def probability_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`KL(teacher ‖ student)` of attention probabilities `[n, heads, queries, keys]`, heads averaged."""
    mine, theirs = (p.float().mean(1) if p.ndim == 4 else p.float() for p in (student, teacher))
    return F.kl_div(mine.clamp(min=TINY).log(), theirs, reduction="sum") / max(mine[..., 0].numel(), 1)


# --- together --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distilled:
    """The objective of a student: what its labels and its teacher say.

    Attributes:
        student: the network itself, whatever it is wrapped in when it is called.
        attends: modules of both networks that may return attention probabilities.
    """

    terms: Distillation
    task: Task
    labels: LabelLoss
    student: nn.Module
    teacher: Teacher
    matches: tuple[Match, ...] = ()
    attends: tuple[str, ...] = ()

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of one batch, weighted."""
        with captured(self.student, [*(match.student for match in self.matches), *self.attends]) as inside:
            outputs = called(model, batch.inputs)
        answers = self.teacher(batch)
        found: dict[str, Tensor] = {}
        if self.terms.labels:
            found[LABEL] = self.terms.labels * self.labels.of(outputs, batch)
        if self.terms.logits:
            found["logits"] = self.terms.logits * self._soft(first_output(outputs), answers.output, batch)
        if self.matches:
            mine = [match.own(inside.get(match.student)) for match in self.matches]
            found |= self._inside(mine, answers.features)
        if self.attends:
            found |= self._probabilities(
                {path: inside.get(path) for path in self.attends}, answers.probabilities
            )
        return found

    def weight(self, batch: Batch) -> Tensor | int:
        """How much the batch counts among others of one step."""
        return self.labels.weight(batch) if self.terms.labels else batch.count

    def _soft(self, mine: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        if mine.shape != theirs.shape:
            raise ModelError(
                f"A teacher must answer as its student does, but the student's output has shape {list(mine.shape)} and "
                f"the teacher's {list(theirs.shape)}. Give a teacher of the same task, or `logits=0`."
            )
        if self.task.answers is None:
            return F.mse_loss(mine, theirs)
        targets = batch.targets if self.terms.labels and isinstance(batch.targets, Tensor) else None
        rows = self.task.answers
        return soft_loss(rows(mine, targets), rows(theirs, targets), self.terms.temperature)

    def _inside(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, Tensor]:
        terms, pairs = self.terms, list(zip(self.matches, mine, theirs, strict=True))
        found = {}
        if terms.features:
            found["features"] = terms.features * _mean([feature_loss(*_alike(m, a, b)) for m, a, b in pairs])
        if terms.attention:
            maps = [(m, attention_map(a, m.channels), attention_map(b, m.channels)) for m, a, b in pairs]
            found["attention"] = terms.attention * _mean([attention_loss(*_alike(*entry)) for entry in maps])
        if terms.relations:
            _, a, b = pairs[-1]
            found["relations"] = terms.relations * relation_loss(a, b)
        return found

    def _probabilities(self, mine: Mapping[str, object], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = {path: probabilities(output) for path, output in mine.items()}
        losses = [
            probability_loss(own, theirs[path])
            for path, own in held.items()
            if own is not None and path in theirs and own.shape[-2:] == theirs[path].shape[-2:]
        ]
        return {"probabilities": self.terms.attention * _mean(losses)} if losses else {}


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _alike(match: Match, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    if mine.shape != theirs.shape:
        raise ModelError(
            f"What is compared in {match.student!r} must have one shape in student and teacher, got {list(mine.shape)} "
            f"and {list(theirs.shape)}. Where the student was not cut from this teacher, use `logits` and `relations`, "
            "which need no equal widths, or name other `layers`."
        )
    return mine, theirs


def distilled(
    student: nn.Module,
    teacher: nn.Module,
    terms: Distillation,
    task: Task,
    labels: LabelLoss,
    inputs: Callable[[], Inputs],
    asked: Callable[[Teacher], Teacher] = lambda teacher: teacher,
) -> Distilled:
    """The objective that trains `student` by `teacher`.

    Args:
        student: in place.
        teacher: a network in evaluation mode, on the student's device.
        inputs: gives an example of what both take; asked for where no plan tells, and to see attention.
        asked: puts a cache before the teacher.

    Raises:
        ModelError: layers that are asked for are not there, or cannot be compared.
    """
    matches = matched(student, teacher, inputs, terms.layers) if terms.looks_inside else ()
    attends = _attention_modules(student, teacher, inputs) if terms.attention else ()
    source = Teacher(teacher, tuple(matches), tuple(attends))
    return Distilled(terms, task, labels, student, asked(source), matches, tuple(attends))


def _attention_modules(student: nn.Module, teacher: nn.Module, inputs: Callable[[], Inputs]) -> list[str]:
    """Paths, in both networks, of modules that are called attention and return its probabilities."""
    theirs = dict(teacher.named_modules())
    paths = [
        path
        for path, module in student.named_modules()
        if path in theirs and "attention" in type(module).__name__.lower()
    ]
    if not paths:
        return []
    with torch.no_grad(), captured(teacher, paths) as inside:
        called(teacher, inputs())
    return [path for path in paths if are_probabilities(probabilities(inside.get(path)))]
