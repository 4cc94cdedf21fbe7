"""`sned finetune`: train a model of one's own further, after pruning or at any time."""

from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.inputs import load_model
from sned.cli.objects import called, load_object
from sned.cli.options import Json, Model, Weights
from sned.cli.output import check_out, progress, say, show, show_json
from sned.cli.stopping import keeping
from sned.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from sned.training import Tuned

_HOW = "How to train"
_TEACH = "Distillation"


def _how(flag: str, what: str, **more: Any) -> Any:
    return typer.Option(flag, help=what, rich_help_panel=_HOW, **more)


def _taught(flag: str, what: str, **more: Any) -> Any:
    return typer.Option(flag, help=what, rich_help_panel=_TEACH, **more)


def command(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="FILE:NAME",
            help="What to train on: file.py:train, a DataLoader, a Dataset, a list of batches (inputs, targets), "
            "a tuple of two tensors, or a function that gives one.",
        ),
    ],
    weights: Weights = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation",
            metavar="SHARE|FILE:NAME",
            help="What chooses the best epoch: a share of the data to hold out, 0.1, or file.py:validation. "
            "Never the test set.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.safetensors", help="The file to write.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIR", help="Keeps a checkpoint; the same command goes on from it."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE.csv|DIR", help="Figures of each epoch; DIR: TensorBoard."),
    ] = None,
    task: Annotated[
        str, _how("--task", "classification, tokens, language, regression or ranking.")
    ] = "classification",
    epochs: Annotated[int, _how("--epochs", "Passes over the data.")] = 10,
    batch_size: Annotated[int, _how("--batch-size", "Inputs a step, where data come in no batches.")] = 128,
    optimiser: Annotated[
        str | None,
        _how(
            "--optimiser",
            "sgd or adamw, by default what suits the model; or one of one's own, of parameter groups.",
            metavar="NAME|FILE:NAME",
        ),
    ] = None,
    schedule: Annotated[
        str,
        _how(
            "--schedule",
            "cosine, linear or constant; or one of one's own, from the share done to a factor on the rate.",
            metavar="NAME|FILE:NAME",
        ),
    ] = "cosine",
    learning_rate: Annotated[float | None, _how("--learning-rate", "At its peak.")] = None,
    patience: Annotated[
        int | None, _how("--patience", "Stop after so many epochs without a better one.")
    ] = None,
    precision: Annotated[str, _how("--precision", "auto, no, bf16 or fp16.")] = "auto",
    seed: Annotated[int, _how("--seed", "Of all that is drawn at random.")] = 0,
    loss: Annotated[
        str | None,
        _how("--loss", "A loss of one's own, of outputs and targets: file.py:loss.", metavar="FILE:NAME"),
    ] = None,
    metric: Annotated[
        str | None,
        _how(
            "--metric",
            "What validation goes by, of outputs and targets: file.py:metric.",
            metavar="FILE:NAME",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        _how(
            "--set",
            "Any other field of a recipe: warmup, clip, accumulate, ema, steps_per_epoch, label_smoothing ...",
            metavar="FIELD=VALUE",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        _taught(
            "--teacher", "A model to learn from; by default MODEL with --teacher-weights.", metavar="MODEL"
        ),
    ] = None,
    teacher_weights: Annotated[
        Path | None,
        _taught("--teacher-weights", "Those of the teacher: of the dense network.", metavar="FILE"),
    ] = None,
    temperature: Annotated[float | None, _taught("--temperature", "Of both softmaxes; by default 4.")] = None,
    features: Annotated[float | None, _taught("--features", "Weight of features; by default 0.")] = None,
    attention: Annotated[float | None, _taught("--attention", "Weight of attention maps; 0.")] = None,
    relations: Annotated[float | None, _taught("--relations", "Weight of distances of inputs; 0.")] = None,
    json: Json = False,
) -> None:
    """Train a model further: pruned, masked or whole, alone or with a teacher.

    A file that sned saved is cut before its weights are filled in, and keeps its structure and its zeros. In several
    processes: [bold]torchrun --nproc-per-node 2 -- $(which sned) finetune ...[/bold]

    [bold]Examples:[/bold]

    sned finetune model.py:make_model -w small.safetensors -d data.py:train --validation 0.1 -o tuned.safetensors

    sned finetune model.py:make_model -w small.safetensors -d data.py:train --teacher-weights dense.pt

    sned finetune model.py:make_model -d data.py:train --loss own.py:loss --set warmup=0.1 --set clip=1.0
    """
    from sned.errors import TrainingError
    from sned.training import finetune

    if out is not None:
        check_out(out)
    built = load_model(model, weights)
    given = called(load_object(data, what="data"), spec=data)
    own = {"loss": loss, "metric": metric}
    recipe = {
        "task": task,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimiser": _named(optimiser, "optimiser"),
        "schedule": _named(schedule, "schedule"),
        "learning_rate": learning_rate,
        "patience": patience,
        "precision": precision,
        "seed": seed,
        **{name: load_object(spec, what=name) for name, spec in own.items() if spec is not None},
        **_settings(settings or ()),
    }
    taught = None
    if teacher is not None or teacher_weights is not None:
        taught = load_model(teacher or model, teacher_weights)
    asked = {"temperature": temperature, "features": features, "attention": attention, "relations": relations}
    distillation = {name: value for name, value in asked.items() if value is not None}
    try:
        with keeping(folder):
            tuned = finetune(
                built,
                given,
                recipe=recipe,
                validation=_validation(validation),
                teacher=taught,
                distillation=distillation or None,
                folder=folder,
                log=log,
                progress=progress(),
            )
    except TrainingError as error:
        if out is not None and error.kept is not None and _alone():
            _save(error.kept.model, out)
            say(f"What was reached before training failed is in {out}. {error.kept.note}")
        raise
    if not _alone():
        return
    if out is not None:
        _save(tuned.model, out)
    if json:
        show_json(_data(tuned))
    else:
        show(_table(tuned))
    say(f"{tuned.note} {f'The model is in {out}.' if out else 'Give --out FILE to keep the model.'}")


def _alone() -> bool:
    """Whether this is the one of several processes that writes and tells."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _named(given: str | None, what: str) -> Any:
    """A name that sned knows, or an object of the user's own."""
    return load_object(given, what=what) if given is not None and ":" in given else given


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """`FIELD=VALUE` as fields of a recipe: numbers, None, or words."""
    found = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals:
            raise UserError(f"`--set` takes FIELD=VALUE, such as warmup=0.1, got '{entry}'.")
        try:
            found[name] = literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _validation(given: str | None) -> Any:
    if given is None:
        return None
    try:
        return float(given)
    except ValueError:
        if ":" not in given:
            raise UserError(
                f"`--validation` is a share such as 0.1, or file.py:validation, got '{given}'."
            ) from None
    return called(load_object(given, what="validation"), spec=given)


def _save(model: "nn.Module", path: Path) -> None:
    """With its structure where sned cut it, else its weights alone."""
    from sned.files import atomic_path
    from sned.surgery import save
    from sned.surgery.pytorch import PLAN_ATTRIBUTE

    if getattr(model, PLAN_ATTRIBUTE, ()):
        save(model, path)
        return
    from safetensors.torch import save_model

    with atomic_path(path) as beside:
        save_model(model, str(beside))


def _data(tuned: "Tuned") -> dict[str, Any]:
    return {
        "metric": tuned.metric,
        "before": tuned.before,
        "chosen": None if tuned.chosen is None else tuned.chosen.epoch,
        "stopped": tuned.stopped,
        "epochs": [{"epoch": epoch.epoch, "step": epoch.step, **epoch.figures()} for epoch in tuned.history],
    }


def _table(tuned: "Tuned") -> "Table":
    from rich.table import Table

    table = Table("epoch", "loss", tuned.metric, "learning rate", "inputs/s", "seconds")
    for epoch in tuned.history:
        table.add_row(
            f"{epoch.epoch}{' *' if epoch is tuned.chosen and epoch.metric is not None else ''}",
            f"{epoch.loss:.4f}",
            "–" if epoch.metric is None else f"{epoch.metric:.4f}",
            f"{epoch.learning_rate:.2g}",
            f"{epoch.inputs_per_second:,.0f}",
            f"{epoch.seconds:.1f}",
        )
    return table
