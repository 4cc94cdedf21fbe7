"""What a network does in train mode alone is held to, where weights are there for that alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
from tests.graph.oracle import distance, lively, random_units

SEQUENCE = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """Answers a second time in training, by way of an attention that scales by the size of its query."""

    def __init__(self, view: Any = None) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.view, self.width = view, 16
        if view is None:
            self.q, self.k = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        y = self.b(h.mean(1))
        if not self.training:
            return y
        if self.view is not None:
            return y, self.aux(self.view(self, h))
        return y, self.aux(F.scaled_dot_product_attention(self.q(h), self.k(h), h).mean(1))


def test_a_size_that_training_alone_scales_by_stays() -> None:
    model = lively(Auxiliary())
    graph = trace(model, SEQUENCE)
    assert [group.name for group in graph.groups] == ["a"]
    assert any("derives a factor from this size in training" in frozen.reason for frozen in graph.frozen)
    removed = random_units(graph)
    small = apply(model, graph.plan(removed)).train()
    zero = copy.deepcopy(model).train()
    with torch.no_grad():
        for parameter in (zero.a.weight, zero.a.bias):
            parameter[removed["a"]] = 0
        assert distance(small(SEQUENCE), zero(SEQUENCE)) < 1e-5


@pytest.mark.parametrize(
    "view",
    [lambda _, h: h.reshape(-1, 16), lambda m, h: h.view(-1, m.width)],
)
def test_a_size_that_training_alone_asks_for_stays(view: Any) -> None:
    model = lively(Auxiliary(view))
    graph = trace(model, SEQUENCE)
    assert "a" not in {group.name for group in graph.groups}
    assert any("the model does not train without some of it" in frozen.reason for frozen in graph.frozen)


class Attention(nn.Module):
    """One attention that evaluation and training share, and a second answer in training."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 16)
        self.b, self.aux = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return (self.b(y), self.aux(y)) if self.training else self.b(y)


def test_a_factor_that_both_ask_for_is_made_up_for() -> None:
    model = lively(Attention())
    graph = trace(model, SEQUENCE)
    assert [group.name for group in graph.groups] == ["q", "v"]
    removed = random_units(graph)
    small = apply(model, graph.plan(removed)).train()
    zero = copy.deepcopy(model).train()
    with torch.no_grad():
        for layer, units in ((zero.q, "q"), (zero.k, "q"), (zero.v, "v")):
            for parameter in layer.parameters():
                parameter[removed[units]] = 0
        assert distance(small(SEQUENCE), zero(SEQUENCE)) < 1e-5
