"""`finetune`: the one call that trains a network further, on one process or several."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sned.errors import TrainingError, UserError, close_names
from sned.graph.trace import device_of, state_of
from sned.progress import SILENT, Progress
from sned.surgery.keras import is_keras
from sned.surgery.twin import copied
from sned.training.checkpoint import identity
from sned.training.data import Augment, Batches, InMemory, batches_of, held_out
from sned.training.distillation import Distillation, distilled
from sned.training.engine import make_accelerator, place_of
from sned.training.judging import judged
from sned.training.logs import Epoch, check_log
from sned.training.loop import Job, Loop, Position
from sned.training.memory import fitting
from sned.training.objectives import label_loss, metric_of
from sned.training.optimisers import coarse
from sned.training.parts import Objective, Part
from sned.training.randomness import own_randomness
from sned.training.recipe import Recipe
from sned.training.teacher import cached

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, eq=False)
class Tuned:
    """A network that was trained, and how that went.

    Attributes:
        model: of the user's own class, carrying its plan where it had one; its masks held all along.
        history: the figures of every epoch.
        chosen: the epoch whose weights were handed over: the best on the validation data, or the last; None where
            not one was finished.
        metric: name of what validation went by.
        before: that metric before training; None without validation data.
        stopped: "finished", "early", "interrupted" by Ctrl-C, or "failed" (what an error kept).
        note: all that in a sentence.
    """

    model: nn.Module
    history: tuple[Epoch, ...] = field(repr=False)
    chosen: Epoch | None
    metric: str
    before: float | None
    stopped: str
    note: str


@torch.inference_mode(False)
@torch.enable_grad()
def finetune(
    model: nn.Module,
    data: Any,
    *,
    recipe: Recipe | Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
    distillation: Distillation | Mapping[str, Any] | None = None,
    validation: Any = None,
    augment: Augment | None = None,
    parts: Sequence[Part] = (),
    folder: str | Path | None = None,
    log: str | Path | None = None,
    device: str | torch.device | None = None,
    accelerator: Accelerator | None = None,
    progress: Progress = SILENT,
    **changes: Any,
) -> Tuned:
    """Train a network further, on a copy: pruned, masked, repaired, or whole.

    Everything drawn at random follows from the recipe's seed and the position in the run. With `folder`, a checkpoint
    is kept whole there at every epoch's end; the same call goes on from it, after a crash too, to bitwise the same
    result (on one machine, with operators that are deterministic there). Started by `accelerate launch` or `torchrun`
    in several processes, they share every batch.

    Args:
        model: any `nn.Module`; it is not touched. Parameters without `requires_grad` stay as they are, and so do
            statistics among them, or of modules in evaluation mode where the network is in training mode.
        data: a pair of tensors `(inputs, targets)`, which are held on the device; a `Dataset`; a `DataLoader`; or a
            list of batches `(inputs, targets)`. Never the test set.
        recipe: a `Recipe`, or a dict of its fields.
        teacher: a network to learn from, such as the dense one that `model` was cut from; it is not touched.
        distillation: what to learn from it: a `Distillation`, or a dict of its fields; by default its soft answers.
        validation: data that choose the epoch and stop early: of the same kinds, or the share in (0, 1) of `data` to
            hold out for it. Without them the last epoch is handed over. Never the test set.
        augment: changes the inputs of a batch at random, on the device.
        parts: what else acts on the network while it is trained: regularisers, masks that grow.
        folder: of the checkpoint.
        log: a file that ends in .csv, or a folder for TensorBoard.
        device: "cpu" keeps off a GPU.
        accelerator: of Hugging Face Accelerate, configured by the user; the recipe's precision is not used then.
        progress: shown while it runs, in inputs.
        changes: fields of the recipe, such as `epochs=30`.

    Returns:
        The trained network and its history. After Ctrl-C, the best so far.

    Raises:
        UserError: a field of the recipe, the data or a part are not what they must be for this network.
        CheckpointError: the folder holds a run of another network, plan or recipe.
        TrainingError: the loss became NaN, memory ran out, or data ended early; `kept` is the result so far, if any.
        NotFoundError: Accelerate is not installed.

    Example:
        >>> tuned = sned.finetune(small, (images, labels), validation=0.1, epochs=30, folder="run")
        >>> sned.save(tuned.model, "tuned.safetensors")
    """
    if is_keras(model):
        raise UserError(
            "A Keras model is trained by its own `fit`: give it to `sned.keras.Distiller`, with the network before it "
            "was pruned as its teacher."
        )
    if not isinstance(model, nn.Module):
        raise UserError(f"`model` must be a PyTorch model, got {type(model).__name__}.")
    chosen = Recipe.of(recipe, **changes)
    _check_validation(chosen, validation)
    terms = _terms(teacher, distillation)
    given = Given(data, teacher, terms, validation, augment, parts, folder, log)
    return _trained(model, given, chosen, accelerator or make_accelerator(chosen.precision, device), progress)


@dataclass(frozen=True, eq=False)
class Given:
    """What the user gave beside the network and the recipe."""

    data: Any
    teacher: nn.Module | None = None
    terms: Distillation | None = None
    validation: Any = None
    augment: Augment | None = None
    parts: Sequence[Part] = ()
    folder: str | Path | None = None
    log: str | Path | None = None


def _check_validation(recipe: Recipe, validation: Any) -> None:
    """What is judged needs data to judge by.

    Raises:
        UserError: the recipe has a metric or patience, but there are no validation data.
    """
    for name in ("patience", "metric"):
        if validation is None and getattr(recipe, name) is not None:
            raise UserError(
                f"`{name}` goes by validation data, but there are none: give `validation`, data of their own or a "
                "share of the training data such as 0.1."
            )


def _terms(teacher: nn.Module | None, asked: Distillation | Mapping[str, Any] | None) -> Distillation | None:
    """What is learnt from the teacher.

    Raises:
        UserError: there is no teacher to learn it from, or a field is not known.
    """
    if teacher is None:
        if asked is not None:
            raise UserError(
                "A `distillation` needs a `teacher` to learn from: give the network before it was pruned."
            )
        return None
    if isinstance(asked, Distillation):
        return asked
    known = [entry.name for entry in fields(Distillation)]
    for name in asked or {}:
        if name not in known:
            raise UserError(f"A distillation has no field {name!r}. {close_names(name, known)}")
    return Distillation(**(asked or {}))


def _objective(work: nn.Module, given: Given, recipe: Recipe, data: Batches, accelerator: Accelerator,
               progress: Progress) -> Objective:  # fmt: skip
    labels = label_loss(recipe, taught=given.teacher is not None)
    if given.teacher is None or given.terms is None:
        return labels
    limit = given.terms.cache_bytes
    teacher = copied(given.teacher).to(accelerator.device).eval().requires_grad_(False)
    tried = "Try a smaller batch_size, or `cache_bytes=0` in the distillation."
    with accelerator.autocast(), fitting("Asking the teacher", accelerator.device, tried):
        return distilled(
            work,
            teacher,
            given.terms,
            recipe.found_task,
            labels,
            lambda: next(data.epoch(0)).inputs,
            lambda source: cached(source, data, recipe.batch_size, limit, progress),
        )


def _trained(
    model: nn.Module, given: Given, recipe: Recipe, accelerator: Accelerator, progress: Progress
) -> Tuned:
    log = None if given.log is None else Path(given.log)
    progress = progress if accelerator.is_main_process else SILENT
    if log is not None:
        check_log(log)
    for part in given.parts:
        part.check(model)
    with own_randomness():
        data, validation = _data(given, recipe, accelerator)
        home = device_of(state_of(model))
        work = copied(model).to(accelerator.device)
        metric = metric_of(recipe)
        before = None if validation is None else judged(work, validation, metric, accelerator)
        job = Job(
            model=work,
            data=data,
            inputs=len(data) * (data.size if isinstance(data, InMemory) else recipe.batch_size),
            recipe=recipe,
            objective=_objective(work, given, recipe, data, accelerator, progress),
            metric=metric,
            accelerator=accelerator,
            identity={"network": identity(model), "run": _told(recipe, data, given)},
            validation=validation,
            parts=given.parts,
            folder=None if given.folder is None else Path(given.folder),
            log=log,
            progress=progress,
        )
        loop = Loop(job)
        start = time.perf_counter()
        try:
            loop.run()
        except TrainingError as error:
            loop.release()
            if loop.good is not None:
                error.kept = _tuned(loop, work.to(home), before, time.perf_counter() - start)
            raise
        loop.release()
        return _tuned(loop, work.to(home), before, time.perf_counter() - start)


def _data(given: Given, recipe: Recipe, accelerator: Accelerator) -> tuple[Batches, Batches | None]:
    place = place_of(accelerator)
    data, validation = given.data, given.validation
    if isinstance(validation, int | float):
        data, validation = held_out(data, validation, recipe.seed)
    tried = "Give a Dataset or a DataLoader, which is read batch by batch."
    with fitting("All of the data", place.device, tried):
        training = batches_of(
            data,
            size=recipe.batch_size,
            place=place,
            seed=recipe.seed,
            steps=recipe.steps_per_epoch,
            augment=given.augment,
        )
        if validation is None:
            return training, None
        return training, batches_of(validation, size=recipe.batch_size, place=place, training=False)


def _told(recipe: Recipe, data: Batches, given: Given) -> dict[str, str]:
    """What makes a run the run that it is; how often it is saved does not."""
    told = {name: value for name, value in recipe.told().items() if name != "save_every"}
    return {
        **told,
        "batches": str(len(data)),
        "validation": "none" if given.validation is None else "given",
        "teacher": "none" if given.teacher is None else type(given.teacher).__name__,
        "distillation": repr(given.terms),
        "parts": "; ".join(words for part in given.parts if (words := part.told())) or "none",
    }


def _tuned(loop: Loop, model: nn.Module, before: float | None, seconds: float) -> Tuned:
    at = loop.at
    best = loop.best if loop.job.recipe.keep == "best" else None
    number = best["epoch"] if best is not None else at.epoch
    chosen = next((epoch for epoch in at.history if epoch.epoch == number), None)
    return Tuned(
        model=model,
        history=tuple(at.history),
        chosen=chosen,
        metric=loop.job.metric.name,
        before=before,
        stopped=at.stopped or "failed",
        note=_note(at, chosen, loop, before, seconds),
    )


def _note(at: Position, chosen: Epoch | None, loop: Loop, before: float | None, seconds: float) -> str:
    done = f"{len(at.history)} of {loop.job.recipe.epochs} epochs, {at.step} steps"
    told = f"Trained for {done}"
    if at.stopped == "interrupted":
        told += ", then stopped by Ctrl-C"
    if at.stopped == "early":
        told += f", then no better for {loop.job.recipe.patience} epochs"
    if chosen is not None and chosen.metric is not None and before is not None:
        told += f"; {loop.job.metric.name} on validation data {before:.4f} before, {chosen.metric:.4f} after epoch "
        told += f"{chosen.epoch}"
    told = f"{told}; {seconds:.0f} s."
    if found := coarse(loop.job.model):
        told += (
            f" Its weights are {found}, in which small steps are lost: train `model.float()`, with `precision='bf16'` "
            "for speed, and cast what comes out."
        )
    return told
