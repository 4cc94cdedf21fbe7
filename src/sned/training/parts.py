"""What a loop is given to work with: what is minimised, and what else acts on the network while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sned.training.data import Batch


class Objective(Protocol):
    """What is minimised: the sum of the terms that it returns, each a scalar that is weighted already."""

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of one batch, means over its inputs."""
        ...

    def weight(self, batch: Batch) -> Tensor | int:
        """How much the batch counts among others of one step."""
        ...


@dataclass(frozen=True, eq=False)
class Trained:
    """What a `Part` may act on: the network, what optimises it, and its moving average."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: nn.Module | None


class Part:
    """Something that acts on a network while it is trained: a regulariser, or masks that grow. Does nothing itself.

    What it does must follow from the network and the step, so that a run can be resumed.
    """

    def check(self, model: nn.Module) -> None:
        """Refuse a network that it cannot act on, before it is trained."""

    def after_backward(self, model: nn.Module, step: int, total: int) -> None:
        """Change gradients ahead of step `step` of `total`, counted from 0."""

    def after_step(self, trained: Trained, step: int, total: int) -> None:
        """Change weights or masks once `step` steps of `total` are made."""

    def told(self) -> str:
        """Its settings in words, which a checkpoint must agree with; "" where that does not matter."""
        return ""

    def ready(self, step: int, total: int) -> bool:
        """Whether the network is by now what it is to become, so that an epoch may count as the best."""
        del step, total
        return True
