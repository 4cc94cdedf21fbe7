"""A metric over all of the validation data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sned.graph.example import called
from sned.graph.trace import mode_of
from sned.training.data import Batches
from sned.training.memory import fitting
from sned.training.tasks import Metric

if TYPE_CHECKING:
    from accelerate import Accelerator


def judged(model: nn.Module, data: Batches, metric: Metric, accelerator: Accelerator) -> float:
    """The metric of a model in evaluation mode on all of the data, over all processes; its modes are put back."""
    total: Tensor | None = None
    with torch.no_grad(), accelerator.autocast(), mode_of(model, training=False):
        for batch in data.epoch(0):
            with fitting(
                f"Judging {batch.count} inputs at once",
                accelerator.device,
                f"Try batch_size={max(batch.count // 2, 1)}, or smaller batches of validation data.",
            ):
                sums = metric.sums(called(model, batch.inputs), batch.targets).double()
            sums = sums.to(accelerator.device)
            total = sums if total is None else total + sums
    if accelerator.num_processes > 1:  # a process may have got no batch at all
        size = torch.tensor([0 if total is None else len(total)], device=accelerator.device)
        width = int(torch.as_tensor(accelerator.gather(size)).max())
        total = torch.zeros(width, dtype=torch.float64, device=accelerator.device) if total is None else total
        total = torch.as_tensor(accelerator.reduce(total, "sum"))
    return math.nan if total is None else metric.value(total.cpu())
