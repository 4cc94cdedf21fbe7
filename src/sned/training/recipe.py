"""How a network is trained: one value with everything that may be chosen, and defaults that work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

from sned.errors import UserError, close_names
from sned.training.optimisers import MakeOptimiser, Schedule, find_kind, find_schedule
from sned.training.tasks import Loss, Metric, Task, find_task

SMOOTHING = 0.1
"""Label smoothing without a teacher; a teacher's answers are smooth already."""

PRECISIONS = ("auto", "no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about training but the network, the data and the teacher.

    Attributes:
        epochs: passes over the data, at least 1.
        batch_size: inputs a step, over all processes, for data that are not in batches already.
        task: a name in `sned.training.TASKS`: "classification", "tokens", "language", "regression", "ranking".
        loss: `(outputs, targets) -> scalar`, instead of the task's.
        metric: a `Metric`, or `(outputs, targets) -> number`, higher is better, instead of the task's.
        optimiser: "sgd", "adamw", or a function from parameter groups to an optimiser; by default SGD with Nesterov's
            momentum for convolutional networks, AdamW for transformers and the rest.
        learning_rate, weight_decay: of the named optimiser; by default 0.005 and 5e-4 (SGD), 1e-4 and 0.01 (AdamW on
            transformers), 1e-3 and 0.01 (AdamW on others). Biases and normalisation do not decay.
        schedule: "cosine", "constant", "linear", or a function of the share done in [0, 1) to a factor on the rate.
        warmup: share of the steps over which the rate rises, in [0, 1).
        label_smoothing: in [0, 1), for losses over classes; by default 0.1, and 0 with a teacher.
        ema: keep a moving average of the weights, which is judged and handed over: its memory as a share of all steps,
            in [0, 1); 0 for none.
        clip: norm that gradients are cut down to; 0 for none; by default 1 with AdamW, else none.
        accumulate: batches a step, which count by their targets that are not ignored, or by their inputs.
        precision: of the forward pass: "bf16", "fp16", "no" (float32), or "auto": bf16 (else fp16) on a GPU.
        patience: stop after so many epochs without a better metric on the validation data; None: never early.
        keep: "best" (on the validation data, where there are any) or "last".
        steps_per_epoch: batches an epoch, for data without a length, or to shorten epochs.
        save_every: steps between checkpoints, beside one at the end of each epoch.
        seed: of order, augmentation, dropout and held-out inputs.

    Raises:
        UserError: a value is out of its range, or a name is not known.
    """

    epochs: int = 10
    batch_size: int = 128
    task: str = "classification"
    loss: Loss | None = None
    metric: Metric | Any = None
    optimiser: str | MakeOptimiser | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str | Schedule = "cosine"
    warmup: float = 0.05
    label_smoothing: float | None = None
    ema: float = 0.05
    clip: float | None = None
    accumulate: int = 1
    precision: str = "auto"
    patience: int | None = None
    keep: str = "best"
    steps_per_epoch: int | None = None
    save_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience", "steps_per_epoch", "save_every"):
            _whole(name, getattr(self, name), optional=name not in ("epochs", "batch_size", "accumulate"))
        for name in ("warmup", "label_smoothing", "ema"):
            _share(name, getattr(self, name))
        for name in ("learning_rate", "weight_decay", "clip"):
            _not_negative(name, getattr(self, name))
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("keep", self.keep, ("best", "last"))
        find_task(self.task)
        if isinstance(self.optimiser, str):
            find_kind(self.optimiser)
        if isinstance(self.schedule, str):
            find_schedule(self.schedule)

    @classmethod
    def of(cls, given: Recipe | Mapping[str, Any] | None, **changes: Any) -> Self:
        """A recipe from one, or from a dict of fields, with some fields changed.

        Raises:
            UserError: a recipe has no such field; close names are listed.
        """
        base = given if isinstance(given, cls) else cls()
        asked = {**(given if isinstance(given, Mapping) else {}), **changes}
        known = [field.name for field in fields(cls)]
        for name in asked:
            if name not in known:
                raise UserError(f"A recipe has no field {name!r}. {close_names(name, known)}")
        return replace(base, **asked)

    @property
    def found_task(self) -> Task:
        """The task."""
        return find_task(self.task)

    def told(self) -> dict[str, str]:
        """Every field in words, for a checkpoint to compare; functions by their names."""
        return {field.name: _worded(getattr(self, field.name)) for field in fields(self)}


def _worded(value: Any) -> str:
    """A value in words that are the same in another process."""
    inner = value.func if isinstance(value, partial) else value
    named = getattr(inner, "__qualname__", None) or getattr(inner, "name", None)
    return str(named) if named else type(inner).__name__ if callable(inner) else repr(inner)


def _whole(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def _share(name: str, value: float | None) -> None:
    if value is not None and not (_number(value) and 0 <= value < 1):
        raise UserError(f"`{name}` must be in [0, 1), got {value!r}.")


def _not_negative(name: str, value: float | None) -> None:
    if value is not None and not (_number(value) and 0 <= value < float("inf")):
        raise UserError(f"`{name}` must be a finite number of at least 0, got {value!r}.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}.")
