"""What a network is trained to do: for each task a loss to minimise and a metric to judge by, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sned.errors import ModelError, SnedError, UserError, close_names
from sned.graph.example import tensors_in
from sned.training.memory import is_memory_error

IGNORED = -100
"""A target of no class, as PyTorch has it: it counts neither in a loss nor in a metric."""

TOP = 10
"""Places at the top of a ranking that its metric looks at."""

T = TypeVar("T")

Loss = Callable[[Any, Any], Tensor]
"""`(what the model returns, targets) -> scalar`, a mean over the batch."""


@dataclass(frozen=True)
class Metric:
    """A figure that is exact however the inputs are batched, and over several processes.

    Attributes:
        name: for people.
        sums: `(what the model returns, targets) -> [k]`, which adds up over batches.
        value: the figure, higher is better, from the sum `[k]` over all of them.
    """

    name: str
    sums: Callable[[Any, Any], Tensor]
    value: Callable[[Tensor], float]


@dataclass(frozen=True)
class Task:
    """A loss, a metric, and which positions of the first output hold an answer.

    Attributes:
        loss: `(outputs, targets, label smoothing) -> scalar`.
        metric: what validation goes by.
        answers: `(first output, targets or None) -> [n, classes]`: the rows that distillation compares; None where
            outputs are numbers rather than classes.
        counted: `(targets) -> how many the loss is a mean over`; None, or gives None, where that goes by the inputs.
    """

    name: str
    loss: Callable[[Any, Any, float], Tensor]
    metric: Metric
    answers: Callable[[Tensor, Any], Tensor] | None
    counted: Callable[[Tensor], Tensor | None] | None = None


def first_output(outputs: Any) -> Tensor:
    """The first tensor that a model returns, whatever it is nested in.

    Raises:
        ModelError: there is none.
    """
    found = tensors_in(outputs)
    if not found:
        raise ModelError(f"A model that is trained returns a tensor, got {type(outputs).__name__}.")
    return found[0]


def mean_metric(function: Callable[[Any, Any], Any], name: str | None = None) -> Metric:
    """A user's `(outputs, targets) -> number` as a `Metric`: its mean over batches, weighed by what they hold."""

    def value(outputs: Any, targets: Any) -> float:
        return float(function(outputs, targets))

    def sums(outputs: Any, targets: Any) -> Tensor:
        count = len(first_output(outputs))
        return torch.tensor([users("metric", value, outputs, targets) * count, count], dtype=torch.float64)

    return Metric(name or str(getattr(function, "__name__", "metric")), sums, _ratio)


def users(name: str, function: Callable[[Any, Any], T], outputs: Any, targets: Any) -> T:
    """What a function of the user's own gives for a batch.

    Raises:
        UserError: it failed; says how.
    """
    try:
        return function(outputs, targets)
    except SnedError:
        raise
    except Exception as error:
        if is_memory_error(error):
            raise
        raise UserError(
            f"`{name}` takes what the model returns and the targets of a batch, and gives a number, but failed with "
            f"{type(error).__name__}: {error}. Try it on one batch in Python first."
        ) from error


def find_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UserError: there is none; close names are listed.
    """
    if name not in TASKS:
        raise UserError(f"No task is called {name!r}. {close_names(name, TASKS)}")
    return TASKS[name]


def _ratio(sums: Tensor) -> float:
    return float(sums[0] / sums[1].clamp(min=1))


def _pair(part: Tensor, whole: Tensor | int) -> Tensor:
    return torch.stack([part.double(), torch.as_tensor(whole, device=part.device).double()])


# --- classes: one a row (classification), one a position (tokens), the next one (language) ---------------------------


def _rows(logits: Tensor, targets: Any) -> Tensor:
    """`[n, classes]`; positions whose target is to be ignored are left out (none, of targets that are shares)."""
    flat = logits.reshape(-1, logits.shape[-1])
    return flat if targets is None or targets.is_floating_point() else flat[targets.reshape(-1) != IGNORED]


def _images(logits: Tensor, targets: Any) -> Tensor:
    """Classes are the second axis: `[n, classes]`, or `[n, classes, h, w]` for a class a pixel."""
    return _rows(logits.movedim(1, -1), targets)


def _class_loss(outputs: Any, targets: Tensor, smoothing: float) -> Tensor:
    logits = first_output(outputs)
    _check_classes(logits, targets, 1)
    wanted = targets.movedim(1, -1) if targets.shape == logits.shape else targets
    return _cross_entropy(logits.movedim(1, -1), wanted, smoothing)


def _token_loss(outputs: Any, targets: Tensor, smoothing: float) -> Tensor:
    logits = first_output(outputs)
    _check_classes(logits, targets, logits.ndim - 1)
    return _cross_entropy(logits, targets, smoothing)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """A mean over the targets that are not ignored, `[..., classes]` against `[...]` or shares; 0 where all are."""
    wanted = targets.flatten(0, -2) if targets.shape == logits.shape else targets.flatten()
    rows = logits.flatten(0, -2)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))  # a sum of many is beyond half precision
    total = F.cross_entropy(rows, wanted, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
    counted = _counted(wanted)
    return total / (len(rows) if counted is None else counted.clamp(min=1))


def _counted(targets: Tensor) -> Tensor | None:
    """How many targets are not ignored; None of shares of classes, which go by the inputs."""
    return None if targets.is_floating_point() else (targets != IGNORED).sum()


def _language_loss(outputs: Any, targets: Tensor, smoothing: float) -> Tensor:
    return _token_loss(first_output(outputs)[:, :-1], targets[:, 1:], smoothing)


def _check_classes(logits: Tensor, targets: Tensor, axis: int) -> None:
    wanted = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    probable = targets.is_floating_point() and targets.shape == logits.shape
    if not probable and (targets.is_floating_point() or tuple(targets.shape) != wanted):
        raise UserError(
            f"Targets of this task are whole numbers of classes, shape {list(wanted)} for outputs "
            f"{list(logits.shape)}, got {targets.dtype} {list(targets.shape)}. "
            "Choose the `task` that fits, or give a `loss` of your own."
        )
    # On a GPU a look would wait for it at every step.
    if not probable and targets.device.type == "cpu":
        _check_range(targets, logits.shape[axis])


def _check_range(targets: Tensor, classes: int) -> None:
    """Classes are 0 to `classes - 1`, or `IGNORED`."""
    low, high = (int(value) for value in targets.aminmax())
    if low >= 0 and high < classes:
        return
    wrong = targets[((targets < 0) | (targets >= classes)) & (targets != IGNORED)]
    if len(wrong):
        raise UserError(
            f"Targets are classes from 0 to {classes - 1} (of {classes} outputs; {IGNORED} is ignored), got "
            f"{int(wrong[0])}. Number the classes from 0, or give a model with more outputs."
        )


def _accuracy(outputs: Any, targets: Tensor, axis: int) -> Tensor:
    logits = first_output(outputs)
    classes = targets.argmax(axis) if targets.shape == logits.shape else targets
    there = classes != IGNORED
    return _pair(((logits.argmax(axis) == classes) & there).sum(), there.sum())


# --- numbers ---------------------------------------------------------------------------------------------------------


def _squares(outputs: Any, targets: Tensor, smoothing: float) -> Tensor:
    del smoothing
    return F.mse_loss(*_like(first_output(outputs), targets))


def _like(values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape; a last axis of one may be missing.

    Raises:
        UserError: they hold different numbers of values.
    """
    if values.squeeze(-1).shape != targets.squeeze(-1).shape:
        raise UserError(
            f"Targets of a regression have the shape of the outputs, {list(values.shape)}, got "
            f"{list(targets.shape)}."
        )
    return values, targets.reshape(values.shape).to(values.dtype)


def _r2_sums(outputs: Any, targets: Tensor) -> Tensor:
    values, wanted = _like(first_output(outputs).double(), targets)
    return torch.stack(
        [
            (values - wanted).square().sum(),
            wanted.square().sum(),
            wanted.sum(),
            wanted.new_tensor(wanted.numel()),
        ]
    )


def _r2(sums: Tensor) -> float:
    spread = sums[1] - sums[2].square() / sums[3].clamp(min=1)
    return float(1 - sums[0] / spread.clamp(min=torch.finfo(torch.float64).tiny))


# --- rankings: `[n, items]` scores against relevance, negative where there is no item --------------------------------


def _list_loss(outputs: Any, targets: Tensor, smoothing: float) -> Tensor:
    """ListNet: cross-entropy of the share of relevance against the softmax of scores.

    Reference: Cao et al., Learning to Rank: From Pairwise to Listwise Approach, 2007 (top-one probabilities).
    """
    del smoothing
    scores = _ranked(outputs, targets)
    there = targets >= 0
    wanted = targets.clamp(min=0).to(scores.dtype)
    wanted = wanted / wanted.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    logs = scores.masked_fill(~there, -torch.inf).log_softmax(-1).masked_fill(~there, 0.0)
    return -(wanted * logs).sum(-1).mean()


def _ranked(outputs: Any, targets: Tensor) -> Tensor:
    scores = first_output(outputs)
    if scores.shape != targets.shape or scores.ndim != 2:
        raise UserError(
            "A ranking takes scores and relevances of shape [lists, items] (relevance below 0: no item), got "
            f"{list(scores.shape)} and {list(targets.shape)}."
        )
    return scores


def _gain_sums(outputs: Any, targets: Tensor) -> Tensor:
    """NDCG at `TOP`, summed over lists that hold anything relevant."""
    scores = _ranked(outputs, targets)
    relevance = targets.clamp(min=0).double()
    places = min(TOP, scores.shape[-1])
    discount = 1 / torch.log2(torch.arange(places, device=scores.device, dtype=torch.float64) + 2)
    order = scores.masked_fill(targets < 0, -torch.inf).topk(places).indices
    gained = ((2 ** relevance.gather(-1, order) - 1) * discount).sum(-1)
    best = ((2 ** relevance.topk(places).values - 1) * discount).sum(-1)
    told = best > 0
    return _pair((gained[told] / best[told]).sum(), told.sum())


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "classification",
            _class_loss,
            Metric("accuracy", lambda outputs, targets: _accuracy(outputs, targets, 1), _ratio),
            _images,
            _counted,
        ),
        Task(
            "tokens",
            _token_loss,
            Metric("token accuracy", lambda outputs, targets: _accuracy(outputs, targets, -1), _ratio),
            _rows,
            _counted,
        ),
        Task(
            "language",
            _language_loss,
            Metric(
                "next-token accuracy",
                lambda outputs, targets: _accuracy(first_output(outputs)[:, :-1], targets[:, 1:], -1),
                _ratio,
            ),
            lambda logits, targets: _rows(logits[:, :-1], None if targets is None else targets[:, 1:]),
            lambda targets: _counted(targets[:, 1:]),
        ),
        Task("regression", _squares, Metric("R²", _r2_sums, _r2), None),
        Task(
            "ranking",
            _list_loss,
            Metric(f"NDCG@{TOP}", _gain_sums, _ratio),
            lambda scores, targets: scores if targets is None else scores.masked_fill(targets < 0, -1e4),
        ),
    )
}
"""Every task by name."""
