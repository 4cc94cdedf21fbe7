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


class Branches(nn.Module):
    """Two branches that evaluation adds up at the end; training does something with both, without weights of its own."""

    def __init__(self, also: Any) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 16), nn.Linear(6, 16)
        self.b, self.d = nn.Linear(16, 3), nn.Linear(16, 3)
        self.also = also

    def forward(self, x: Tensor) -> Any:
        h, k = torch.relu(self.a(x)), torch.relu(self.c(x))
        y = self.b(h) + self.d(k)
        return (y, self.also(h, k)) if self.training else y


def test_branches_that_training_alone_compares_go_together() -> None:
    model = lively(Branches(lambda h, k: (h - k).square().sum()))
    graph = trace(model, SEQUENCE)
    (group,) = graph.groups
    removed = {group.name: [0, 3, 8]}
    small = apply(model, graph.plan(removed)).train()
    zero = copy.deepcopy(model).train()
    with torch.no_grad():
        for layer in (zero.a, zero.c):
            for parameter in layer.parameters():
                parameter[removed[group.name]] = 0
        for got, wanted in zip(small(SEQUENCE), zero(SEQUENCE), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("also", "reason"),
    [
        (lambda h, _: h.reshape(-1, 16), "output of the model"),
        (lambda h, _: h, "output of the model"),
        (lambda h, _: (h + 0.1 * torch.randn(len(h), 5, 16)).mean(), "meets an axis of fixed size"),
        (lambda h, _: (h + h.new_ones(16)).mean(), "the model does not train without some of it"),
        (lambda h, _: h.view(-1, 2, 16).mean(), "the model does not train without some of it"),
    ],
)
def test_what_training_asks_of_a_branch_keeps_that_branch_alone(also: Any, reason: str) -> None:
    graph = trace(lively(Branches(also)), SEQUENCE)
    assert [group.name for group in graph.groups] == ["c"]
    assert any(frozen.name == "a" and reason in frozen.reason for frozen in graph.frozen)


class Inner(nn.Module):
    """Holds a literal that training alone reads."""

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (2, 8)).sum(-2).mean(-1)


def test_the_module_in_which_training_fails_is_named() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.inner = nn.Linear(6, 16), nn.Linear(16, 3), Inner()

        def forward(self, x: Tensor) -> Any:
            h = torch.relu(self.a(x))
            return (self.b(h), self.inner(h)) if self.training else self.b(h)

    (reason,) = (frozen.reason for frozen in trace(Nested(), SEQUENCE).frozen if frozen.name == "a")
    assert "does not train without some of it (in module 'inner': RuntimeError" in reason
