"""What a forward pass keeps for the next time is taken back after a trace."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sned import trace
from sned.graph.untouched import Untouched
from tests.graph.oracle import call, distance, lively


class Hooks(nn.Module):
    """Hooks on and keeps things in its first pass, and expects them there in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.ready, self.seen = False, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            self.a.register_forward_hook(lambda _, __, made: self.seen.append(made))
            self.ready = True
        self.seen.clear()
        y = self.a(x).relu()
        return self.b(y) * len(self.seen)


def test_what_a_pass_hooks_on_and_keeps_is_taken_back() -> None:
    model = Hooks()
    graph = trace(model, torch.randn(2, 4))
    assert [group.name for group in graph.groups] == ["a"]
    assert not model.ready
    assert not model.seen
    assert not model.a._forward_hooks


def test_one_serves_pass_after_pass() -> None:
    model, x = Hooks(), torch.randn(2, 4)
    untouched, before = Untouched(model), dict(vars(model))
    for _ in range(2):
        with untouched:
            model(x)
            assert model.ready
        assert vars(model) == before
        assert not model.seen
        assert not model.a._forward_hooks


class Cached(nn.Module):
    """Keeps a table of positions for the next time, in the place that is asked for."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.keep, self.a, self.b = keep, nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        keep = self.keep
        while not isinstance(keep, dict | list | deque):
            keep = keep.held
        if not keep:
            table = torch.arange(x.shape[1], device=x.device)[:, None].float()
            keep.update({0: table}) if isinstance(keep, dict) else keep.append(table)
        return self.b(torch.relu(self.a(x) + keep[0]))


class Ordered(OrderedDict[int, Any]):
    """A table of the user's own kind."""


PLACES: dict[str, Any] = {
    "a dict in a namespace": lambda: SimpleNamespace(held={}),
    "a list in an object in an object": lambda: SimpleNamespace(held=SimpleNamespace(held=[])),
    "a default": lambda: defaultdict(list),
    "the last few": lambda: deque(maxlen=3),
    "a kind of its own": Ordered,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_table_that_a_pass_keeps_anywhere_is_taken_back(place: str) -> None:
    model, x = lively(Cached(PLACES[place]())), torch.randn(2, 5, 6)
    keep = model.keep
    assert [group.name for group in trace(model, x).groups] == ["a"]
    assert model.keep is keep
    while isinstance(keep, SimpleNamespace):
        keep = keep.held
    assert not keep
    expected = model.b(torch.relu(model.a(x) + torch.arange(5.0)[:, None]))
    assert distance(call(model, x), expected) < 1e-6


class Helper:
    """Keeps a table in an attribute, and is called, so that it is no mere configuration."""

    def __init__(self) -> None:
        self.table: Tensor | None = None
        self.nested: dict[str, dict[int, Tensor]] = {"by length": {}}

    def __call__(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(x.shape[1], device=x.device)[:, None].float()
            self.nested["by length"][x.shape[1]] = self.table
        return self.table + self.nested["by length"][x.shape[1]]


class Helped(nn.Module):
    """Asks a helper that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.helper, self.a, self.b = Helper(), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) + self.helper(x)))


def test_what_helpers_keep_is_taken_back() -> None:
    model, x = lively(Helped()), torch.randn(2, 5, 6)
    trace(model, x)
    assert model.helper.table is None
    assert model.helper.nested == {"by length": {}}
    expected = model.b(torch.relu(model.a(x) + 2 * torch.arange(5.0)[:, None]))
    assert distance(call(model, x), expected) < 1e-6
    table = model.helper.table
    trace(model, x)
    assert model.helper.table is table, "what was there before the trace stays"
