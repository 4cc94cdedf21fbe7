"""Models that ask their masks and positions for values are recorded without computing anything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sned import apply, trace
from tests.graph.oracle import call, distance, lively, random_units, zeroed

IDS = torch.tensor([[1, 2, 3, 4], [2, 3, 4, 5]])


class Asking(nn.Module):
    """Branches on what positions, inputs and buffers hold; `ask` is the question."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(8, 6), nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("times", torch.tensor(2))
        self.ask = ask

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(self.ask(self, torch.relu(self.a(self.embed(ids))), ids))


def item(model: Asking, x: Tensor, _: Tensor) -> Tensor:
    for _ in range(int(model.times)):
        x = x * 1.5
    return x


def mask(_: Asking, x: Tensor, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1], device=x.device)
    causal = positions[None] <= positions[:, None]
    return x if causal.all() else x.cumsum(1)


def nonzero(_: Asking, x: Tensor, ids: Tensor) -> Tensor:
    odd = torch.arange(ids.shape[1], device=x.device) % 2
    return x[:, odd.nonzero()[:, 0]]


def written(_: Asking, x: Tensor, ids: Tensor) -> Tensor:
    table = torch.zeros(4, dtype=torch.long, device=x.device)
    table[1:3] = 1
    view = table[2:]
    view.add_(5)
    return x * int(table.sum())


@pytest.mark.parametrize("ask", [item, mask, nonzero, written])
def test_a_pass_that_asks_is_recorded_on_tensors_without_values(ask: Any) -> None:
    model = lively(Asking(ask))
    graph = trace(model, IDS)
    assert graph.recorded.device == "meta"
    plan = graph.plan(random_units(graph, 0.5))
    assert plan.removed
    small = apply(model, plan)
    assert distance(call(small, IDS), zeroed(model, graph, plan.removed, IDS)) < 1e-5


def floats(_: Asking, x: Tensor, ids: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def written_by_floats(_: Asking, x: Tensor, ids: Tensor) -> Tensor:
    table = torch.zeros(x.shape, dtype=torch.long, device=x.device)
    table[0] = 1
    table.copy_(x > 0)
    return x * (2 if int(table.sum()) > 3 else 3)


@pytest.mark.parametrize("ask", [floats, written_by_floats])
def test_questions_about_weights_need_real_tensors(ask: Any) -> None:
    assert trace(lively(Asking(ask)), IDS).recorded.device == "cpu"
