"""A small network, and the road through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sned
from sned.pipeline import Result


class Small(nn.Module):
    """Two groups of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.features(x)).mean((2, 3)))


X = torch.zeros(1, 3, 8, 8)
BATCHES = list(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def pruned(model: nn.Module | None = None, *, budget: Any = None, **options: Any) -> Result:
    given = sned.Budget(macs="50%") if budget is None else budget
    return sned.prune(model or small(), X, budget=given, **{"calibration": BATCHES, **options})


def widths(result: Result) -> list[int]:
    return [group.after for group in result.report.groups]


def weights(model: nn.Module) -> float:
    """A measure of a model that falls with every unit: the share of the parameters that are left."""
    return sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in small().parameters())
