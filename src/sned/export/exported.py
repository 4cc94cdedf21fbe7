"""A written file and what is known about it, and the same file as a module that can be called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sned.errors import ExampleError
from sned.export.parity import Array, Parity
from sned.export.structure import tensors
from sned.export.target import FP32, Session, find_target
from sned.timing import Latency


@dataclass(frozen=True)
class Exported:
    """A file that computes what the model computes.

    Attributes:
        path: where it is.
        size_bytes: of all that belongs to it: external data, a `.bin` beside an `.xml`, a package's folder.
        inputs: names of the inputs, in the order of the model's tensors.
        outputs: names of the outputs.
        dynamic_batch: whether it takes batches of any size.
        static_because: why not, where it does not.
        parity: the worst of the example, of fresh inputs and of calibration inputs, against the model.
        batches: the batch sizes compared.
        opset: version of the ONNX operators that it uses; None elsewhere.
        target: a name in `sned.export.TARGETS`.
        precision: "fp32", "fp16", "int8" or "int8-dynamic".
        level: which of several networks in the file.
        batch: rows that a run takes where the batch is fixed.
        latency: of one run at the example's batch, on this machine, in its own runtime; None where that does
            not run here.
        torch_latency: of the model in PyTorch, interleaved with it; None of a Keras model.
        accuracy: of the file, by the user's own measure.
        torch_accuracy: of the model itself, by the same.
        notes: what was chosen and what was not checked, a sentence each.
    """

    path: Path
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    static_because: str
    parity: Parity
    batches: tuple[int, ...]
    opset: int | None = None
    target: str = "onnx"
    precision: str = FP32
    level: str = ""
    batch: int = 1
    latency: Latency | None = None
    torch_latency: Latency | None = None
    accuracy: float | None = None
    torch_accuracy: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def max_abs_diff(self) -> float:
        """Largest absolute difference to the model of any element of any output."""
        return self.parity.max_abs_diff

    @property
    def max_rel_diff(self) -> float:
        """The same, over the largest magnitude in that output."""
        return self.parity.max_rel_diff

    def session(self, *, threads: int = 1) -> Session:
        """Open the file in its runtime (Core ML: in the reader that stands in for it on other systems)."""
        return find_target(self.target).read(self.path, self.level, threads)

    def module(self, *, threads: int = 1) -> Deployed:
        """The file as a module: any function that evaluates a PyTorch model evaluates the file."""
        batch = None if self.dynamic_batch else self.batch
        return Deployed(self.session(threads=threads), batch)


class Deployed(nn.Module):
    """Calls a file in its runtime as if it were the model; has no parameters.

    Args:
        session: the open file.
        batch: rows that it takes; None for any number. Other numbers are cut, and the last part is filled up.
    """

    def __init__(self, session: Session, batch: int | None) -> None:
        super().__init__()
        self.session = session
        self.batch = batch

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The output, or a tuple of them, in the order of the model's."""
        arrays = [np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in tensors((args, kwargs))]
        outputs = tuple(
            torch.from_numpy(np.array(array)) for array in run_rows(self.session, arrays, self.batch)
        )
        return outputs[0] if len(outputs) == 1 else outputs


def run_rows(session: Session, inputs: list[Array], batch: int | None) -> list[Array]:
    """Run any number of rows through a file that takes `batch` of them at a time (None: any number).

    Tensors whose first axis is as long as the first tensor's are cut along it.

    Raises:
        ExampleError: there are no rows.
    """
    rows = next((array.shape[0] for array in inputs if array.ndim), 1)
    if batch is None or rows == batch:
        return session.run(inputs)
    if not rows:
        raise ExampleError("Inputs must have at least one row, got none.")
    picks = [np.arange(start, start + batch) % rows for start in range(0, rows, batch)]
    parts = [session.run([a[pick] if a.ndim and a.shape[0] == rows else a for a in inputs]) for pick in picks]
    return [np.concatenate(pieces)[:rows] for pieces in zip(*parts, strict=True)]
