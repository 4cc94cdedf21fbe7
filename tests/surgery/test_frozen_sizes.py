"""Sizes that cannot be traced to an attribute: their groups stay, with a reason, and pruning goes on."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
from tests.graph.oracle import call, distance, lively, right, zeroed

SEQUENCE = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class Literal(nn.Module):
    """A number in the code that no attribute holds, between two layers that can lose units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 12), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x).split(6, -1)
        return self.d(F.relu(self.c(F.relu(self.b(one * two)))))


class LiteralView(Literal):
    """A view by literals."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(-1, 2, 6)
        return self.d(F.relu(self.c(F.relu(self.b(y[:, 0] * y[:, 1])))))


class LiteralSlice(Literal):
    """Slices by literals, which no check of shapes would notice."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.d(F.relu(self.c(F.relu(self.b(y[..., :6] + y[..., 6:].flip(-1))))))


@pytest.mark.parametrize("kind", [Literal, LiteralView, LiteralSlice])
def test_a_literal_freezes_its_group_and_says_so_and_pruning_goes_on(kind: type[nn.Module]) -> None:
    model = lively(kind())
    graph = trace(model, SEQUENCE)
    names = {group.name for group in graph.groups}
    assert names == {"b", "c"}
    assert "a" in {frozen.name for frozen in graph.frozen}
    small = right(model, SEQUENCE)
    assert small.a.weight.shape == (12, 5)
    assert small.c.weight.shape == (4, 4)


class LiteralHeads(nn.Module):
    """Attention whose view says one of two sizes by a number, and leaves the other open."""

    def __init__(self, shape: tuple[int, int], *, unflatten: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(5, 16)
        self.proj, self.head = nn.Linear(16, 8), nn.Linear(8, 3)
        self.shape, self.unflatten = str(shape), unflatten  # as text, so that no attribute holds a size

    def view(self, x: Tensor) -> Tensor:
        shape = literal_eval(self.shape)
        parts = x.unflatten(-1, sizes=shape) if self.unflatten else x.view(x.shape[0], x.shape[1], *shape)
        return parts.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.view(layer(x)) for layer in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.head(self.proj(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("unflatten", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((-1, 8), {"q": (2, 1), "proj": (8, 1)}),  # heads
        ((2, -1), {"q": (16, 2), "v": (16, 2), "proj": (8, 1)}),  # dimensions inside heads
        ((2, 8), {"proj": (8, 1)}),
    ],
)
def test_what_a_view_leaves_open_beside_a_number_may_change(
    shape: tuple[int, int], groups: dict[str, tuple[int, int]], unflatten: bool
) -> None:
    model = LiteralHeads(shape, unflatten=unflatten)
    assert {g.name: (g.size, g.cell_count) for g in trace(model, SEQUENCE).groups} == groups
    small = right(model, SEQUENCE)
    assert small.v.weight.shape[0] == (8 if len(groups) > 1 else 16)


class LiteralWrite(Literal):
    """A slice by literals is written to: what it clamps to has the right size and the wrong place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.b = nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[..., 2:6] = self.e(x)
        return self.d(F.relu(self.c(F.relu(self.b(y)))))


def test_a_literal_that_still_fits_by_size_freezes_what_lies_before_it_too() -> None:
    small = right(LiteralWrite(), SEQUENCE)
    assert small.a.weight.shape == (7, 5)
    assert small.c.weight.shape == (4, 4)


class ValueOfASize(nn.Module):
    """Divides by a tensor that holds the root of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        scores = y @ y.transpose(1, 2) / torch.sqrt(torch.tensor(y.shape[-1]))
        return self.c(self.b(scores).relu())


def test_a_tensor_that_holds_a_size_freezes_it() -> None:
    small = right(ValueOfASize(), SEQUENCE)
    assert small.a.weight.shape == (8, 5)
    assert small.b.weight.shape == (6, 6)


class RootOfFloat(nn.Module):
    """A factor whose formula is lost, as other code than PyTorch's may lose it."""

    def __init__(self, write: Callable[[float], Any] = float) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(self.b(y * self.write(float(str(y.shape[-1])) ** -0.5)).relu())


@pytest.mark.parametrize("write", [float, torch.tensor], ids=["a number", "a tensor"])
def test_a_factor_that_changes_with_a_size_freezes_it(write: Callable[[float], Any]) -> None:
    small = right(RootOfFloat(write), SEQUENCE)
    assert small.a.weight.shape == (8, 5)
    assert small.b.weight.shape == (6, 8)


class Stubborn(nn.Module):
    """A number that is kept where no one finds it: in a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        held = [8]
        self.check = lambda: held[0]

    def forward(self, x: Tensor) -> Tensor:
        if (
            len(self.a.bias.tolist() if not self.a.bias.is_meta else range(self.a.bias.shape[0]))
            != self.check()
        ):
            raise ValueError("not what I was made for")
        return self.c(self.b(self.a(x).relu()).relu())


def test_a_group_that_the_model_does_not_run_without_is_frozen_alone() -> None:
    model = Stubborn()
    graph = trace(model, SEQUENCE)
    assert [group.name for group in graph.groups] == ["b"]
    assert any("does not run without some of it" in frozen.reason for frozen in graph.frozen)


class Hidden(nn.Module):
    """Something is made of a hidden layer with a number that follows from its size."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(WITH_NUMBERS[self.kind](self.a(x)))


WITH_NUMBERS: dict[str, Any] = {
    "divided by its size": lambda h: h / h.size(1),
    "times its size": lambda h: h.shape[1] * h,
    "plus its size": lambda h: h + h.size(1),
    "mean by hand": lambda h: h - h.sum(1, keepdim=True) / h.shape[1],
    "groups as a literal": lambda h: F.group_norm(h, 4),
    "a branch by its size": lambda h: h * 2 if h.size(1) > 10 else h,
    "a branch that adds": lambda h: h if h.size(1) > 10 else h.relu(),
}


@pytest.mark.parametrize("kind", WITH_NUMBERS)
def test_numbers_in_arithmetic_are_made_up_for_or_freeze(kind: str) -> None:
    """Whatever is done about them, nothing is handed over that is wrong, and nothing is raised."""
    model, x = lively(Hidden(kind)), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    made_up = kind in ("divided by its size", "times its size")
    assert [group.name for group in graph.groups] == (["a"] if made_up else [])
    if not made_up:
        assert any(frozen.name == "a" and "size" in frozen.reason for frozen in graph.frozen)
        return
    plan = graph.plan({"a": range(5)})
    assert distance(call(apply(model, plan), x), zeroed(model, graph, plan.removed, x)) < 1e-4
