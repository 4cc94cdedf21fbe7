"""A pruned network is run beside the replay before it is handed over; neither run leaves a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sned import apply, trace
from sned.errors import ModelError, SurgeryError
from tests.graph.oracle import call, distance, halved, lively, state

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Remembers(nn.Module):
    """Counts its calls, and subtracts a mean over all rows that it saw from hidden units that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = torch.relu(self.a(x))
        self.seen.mul_(0.9).add_(0.1 * h.mean(0))
        return self.b(h - self.seen)


def test_buffers_that_a_pass_writes_into_are_those_of_the_original() -> None:
    model = lively(Remembers())
    before = copy.deepcopy(state(model))
    small, _, plan = halved(model, ROWS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert int(small.calls) == 0
    assert torch.equal(small.seen, torch.ones(8))
    with torch.no_grad():
        model.b.weight[:, list(plan.removed["a"])] = 0
    for _ in range(2):
        assert distance(call(small, ROWS), call(model, ROWS)) < 1e-5
    assert int(small.calls) == 2


class GoesOn(nn.Module):
    """Starts each sequence where the one before ended."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 16, batch_first=True), nn.Linear(16, 3)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.rnn(x, self.h)
        self.h = h.detach()
        return self.head(y)


def test_a_state_is_not_that_of_the_verification() -> None:
    model = lively(GoesOn())
    small = apply(model, trace(model, torch.randn(2, 5, 6)).plan({"rnn": [0, 3]}))
    assert small.h is None
    assert model.h is None


class Squeezed(nn.Module):
    """Drops every axis of length 1 ahead of its head: of one row alone also that of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.pool(torch.relu(self.a(x))).squeeze())


class Pairs(nn.Module):
    """Sets the first half of its rows against the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.a(x)).chunk(2)
        return self.b(first - second[: len(first)])


class Halves(Pairs):
    """The same by slices; a row alone has no half, and no answer."""

    def forward(self, x: Tensor) -> Tensor:
        h, half = torch.relu(self.a(x)), len(x) // 2
        return self.b(h[:half] - h[half : half + 1])


@pytest.mark.parametrize(
    ("kind", "rows"), [(Squeezed, torch.randn(4, 3, 8, 8)), (Pairs, ROWS), (Halves, ROWS)]
)
def test_a_row_alone_counts_only_where_the_recorded_pass_takes_it(
    kind: type[nn.Module], rows: Tensor
) -> None:
    model = lively(kind())
    small, _, plan = halved(model, rows)
    with torch.no_grad():
        model.b.weight[:, list(plan.removed["a"])] = 0
    assert distance(call(small, rows), call(model, rows)) < 1e-5


class Refuses(nn.Module):
    """Answers rows together; a row alone is refused once units are gone, though the recorded ops take it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1 and self.a.out_features < 16:
            raise RuntimeError("no row alone")
        return self.b(torch.relu(self.a(x)))


def test_a_pruned_network_that_refuses_a_row_alone_is_not_handed_over() -> None:
    with pytest.raises(
        SurgeryError, match=r"must run as the original does, but it raised RuntimeError: no row"
    ):
        halved(lively(Refuses()), ROWS)


class Draws(nn.Module):
    """Adds noise in evaluation mode too, or drops hidden units at random."""

    def __init__(self, *, drops: bool) -> None:
        super().__init__()
        self.a, self.b, self.drops = nn.Linear(6, 16), nn.Linear(16, 3), drops

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(nn.functional.dropout(h, 0.3, training=True) if self.drops else h + torch.randn_like(h))


@pytest.mark.parametrize("drops", [False, True])
def test_random_numbers_are_drawn_alike_and_those_of_the_user_are_kept(drops: bool) -> None:
    model = lively(Draws(drops=drops))
    graph = trace(model, ROWS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small = apply(model, graph.plan({"a": [0, 1, 2]}))
    assert torch.equal(torch.rand(3), expected)
    assert small.a.out_features == 13
    many = ROWS[:1].expand(20000, 6)
    with torch.no_grad():
        model.a.weight[:3], model.a.bias[:3], model.b.weight[:, :3] = 0, 0, 0
        mean = model.b(torch.relu(model.a(ROWS[:1])))
    assert float((call(small, many).mean(0) - mean).abs().max()) < 0.05


class Bags(nn.Module):
    """Takes texts one behind the other, and where each begins."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.EmbeddingBag(50, 16), nn.Linear(16, 3)

    def forward(self, text: Tensor, starts: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(text, starts)))


def test_integers_that_must_be_in_order_are_told_of() -> None:
    text, starts = torch.randint(0, 50, (20,)), torch.tensor([0, 5, 9, 12])
    with pytest.raises(
        ModelError, match=r"(?s)random inputs like the example.*what must be in order, such as off"
    ):
        halved(lively(Bags()), text, starts)
