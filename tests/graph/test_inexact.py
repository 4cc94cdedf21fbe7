"""Where a statistic spans what goes, removal is not zeroing: it is as if the statistic had never seen it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
from tests.graph.oracle import LIMIT, call, distance, example_of, lively, random_units, zeroed
from tests.graph.statistics import statistics_of_what_is_left

IMAGE, ROW = torch.randn(2, 3, 5, 5), torch.randn(2, 6)


class SpatialGate(nn.Module):
    """CBAM: a map made of the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.c(x * torch.sigmoid(self.gate(seen)))


class Maxout(nn.Module):
    """The largest of several pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.a, self.b = 3, nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x.view(x.shape[0], -1, self.pieces).amax(-1))


class SplitAttention(nn.Module):
    """ResNeSt: a softmax over the cardinal parts of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.radix, self.a = 4, nn.Conv2d(3, 32, 3, padding=1)
        self.f1, self.f2, self.c = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 32, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        b, rc, h, w = x.shape
        x = x.reshape(b, self.radix, rc // self.radix, h, w)
        gate = self.f2(F.relu(self.f1(x.sum(1).sum((2, 3), keepdim=True))))
        gate = gate.view(b, 1, self.radix, -1).transpose(1, 2).softmax(1).reshape(b, -1, 1, 1)
        return self.c((x * gate.reshape(b, self.radix, rc // self.radix, 1, 1)).sum(1))


class SoftmaxOver(nn.Module):
    """A softmax over hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).softmax(-1))


class HeadMean(nn.Module):
    """Heads are weighed by what they have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim, self.a, self.b = 4, 3, nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(x.shape[0], self.heads, self.dim)
        y = y * torch.sigmoid(y.mean(1, keepdim=True))
        return self.b(y.reshape(x.shape[0], self.heads * self.dim))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "spatial gate": (SpatialGate, (IMAGE,)),
    "maxout": (Maxout, (ROW,)),
    "split attention": (SplitAttention, (IMAGE,)),
    "softmax": (SoftmaxOver, (ROW,)),
    "head mean": (HeadMean, (ROW,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_removal_is_as_if_the_statistic_had_never_seen_it(name: str, seed: int) -> None:
    maker, inputs = CASES[name]
    model = lively(maker(), seed)
    graph = trace(model, example_of(inputs))
    assert not all(group.exact for group in graph.groups)
    removed = random_units(graph, None if seed else 0.5, seed)
    small = apply(model, graph.plan(removed))
    with statistics_of_what_is_left():
        expected = zeroed(model, graph, removed, *inputs)
    assert distance(call(small, *inputs), expected) < LIMIT
