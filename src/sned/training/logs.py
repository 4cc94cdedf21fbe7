"""What becomes of each epoch's figures: a CSV file, or TensorBoard's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sned.errors import NotFoundError, UserError
from sned.files import atomic_write_text


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps made by its end.
        loss: mean over the epoch's inputs, of all terms together.
        terms: the same of each term, by name.
        learning_rate: of the last step.
        metric: on the validation data; None without them.
        seconds: that it took, validation included.
        inputs_per_second: trained on, over all processes, validation not included.
    """

    epoch: int
    step: int
    loss: float
    terms: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    metric: float | None = None
    seconds: float = 0.0
    inputs_per_second: float = 0.0

    def figures(self) -> dict[str, float]:
        """All that is a number, flat, by name."""
        found = {
            "loss": self.loss,
            **{f"loss/{name}": value for name, value in self.terms.items()},
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
            "inputs_per_second": self.inputs_per_second,
        }
        return found if self.metric is None else {**found, "metric": self.metric}


def write_log(path: Path, history: Sequence[Epoch]) -> None:
    """Write the history of a run to `path`: a CSV file anew where that is its suffix, else the last epoch's figures
    into that folder for TensorBoard.

    Raises:
        NotFoundError: TensorBoard is not installed.
        WriteError: the file cannot be written.
    """
    if path.suffix == ".csv":
        atomic_write_text(path, _as_csv(history))
    elif history:
        _to_tensorboard(path, history[-1])


def check_log(path: Path) -> None:
    """Find out before training whether a log can be written.

    Raises:
        UserError: it is neither a .csv file nor a folder.
        NotFoundError: TensorBoard is not installed.
    """
    if path.suffix == ".csv":
        return
    if path.is_file():
        raise UserError(f"`log` must be a file that ends in .csv, or a folder for TensorBoard, got '{path}'.")
    _writer(path).close()


def _as_csv(history: Sequence[Epoch]) -> str:
    names = list(dict.fromkeys(name for epoch in history for name in epoch.figures()))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", "step", *names], restval="", lineterminator="\n")
    writer.writeheader()
    for epoch in history:
        writer.writerow({"epoch": epoch.epoch, "step": epoch.step, **epoch.figures()})
    return text.getvalue()


def _to_tensorboard(folder: Path, epoch: Epoch) -> None:
    # One writer an epoch: what a killed run wrote after its last checkpoint is overruled by `purge_step`.
    writer = _writer(folder, purge=epoch.step)
    for name, value in epoch.figures().items():
        writer.add_scalar(name, value, epoch.step)
    writer.close()


def _writer(folder: Path, purge: int | None = None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise NotFoundError(
            "TensorBoard is not installed: run `pip install 'sned[tensorboard]'`, or log to a file that ends in .csv."
        ) from error
    return SummaryWriter(str(folder), purge_step=purge)
