"""A written file and what is known about it, and the same file as a module that can be called."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sned.export.calls import Call, run_rows
from sned.export.parity import Parity
from sned.export.structure import arrays
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
        parity: against the model, over the example, fresh inputs and calibration inputs.
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
        call: how it is called as the model is.
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
    call: Call = field(default_factory=Call)
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
        return Deployed(self.session(threads=threads), batch, self.call)


class Deployed(nn.Module):
    """Calls a file in its runtime as if it were the model; has no weights.

    Numbers, switches and `None` are those that it was exported with: they may be left out, and others are refused.

    Args:
        session: the open file.
        batch: rows that it takes; None for any number. Other numbers are cut, and the last part is filled up.
        call: how the model is called.
    """

    def __init__(self, session: Session, batch: int | None, call: Call) -> None:
        super().__init__()
        self.session, self.batch, self.call = session, batch, call
        # Evaluations ask for the device of a network's first parameter.
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The output, or a tuple of them, in the order of the model's."""
        found = run_rows(self.session, arrays(self.call.ordered(args, kwargs)), self.batch, self.call)
        outputs = tuple(torch.from_numpy(np.array(array)) for array in found)
        return outputs[0] if len(outputs) == 1 else outputs
