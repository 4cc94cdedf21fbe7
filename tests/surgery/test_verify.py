"""A pruned network is run beside the replay before it is handed over; neither run leaves a trace."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
from sned.errors import ModelError, SurgeryError
from sned.graph.replay import Replay
from tests.graph.networks import Residual
from tests.graph.oracle import call, distance, halved, lively, state

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
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


class Drifting(nn.Module):
    """A forward that answers otherwise each time that it has values: the recorded pass cannot be held against it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(4, 8), nn.Linear(8, 3), itertools.count(1)

    def forward(self, x: Tensor) -> Tensor:
        drift = 1.0 if x.is_meta else float(next(self.calls))
        return self.b(F.relu(self.a(x))) * torch.tensor(drift)


def test_a_result_that_differs_from_the_replay_is_not_handed_over() -> None:
    model = lively(Drifting())
    graph = trace(model, torch.randn(2, 4))
    with pytest.raises(SurgeryError, match=r"must compute what its plan promises, but its outputs differ by"):
        apply(model, graph.plan({"a": [0, 1]}))


class Meeting(nn.Module):
    """Rows of a batch see each other; takes a number beside the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.outer(torch.relu(self.inner(x))) * factor
        return seen @ seen.T, seen


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that were replayed so far."""
    sizes: list[int] = []
    honest = Replay.run

    def run(self: Replay, inputs: Any, **more: Any) -> Any:
        sizes.append(len(inputs[0][0]))
        return honest(self, inputs, **more)

    monkeypatch.setattr(Replay, "run", run)
    return sizes


def test_a_network_whose_rows_meet_is_held_against_the_replay_of_each_batch_size(replayed: list[int]) -> None:
    model = lively(Meeting())
    graph = trace(model, (torch.randn(2, 6), torch.tensor(0.5)))
    small = apply(model, graph.plan({"inner": [0, 3, 5]}))
    assert replayed == [2, 1]
    assert small.inner.weight.shape == (5, 6)


def test_a_network_whose_rows_do_not_meet_needs_no_second_replay(replayed: list[int]) -> None:
    model = lively(Residual())
    apply(model, trace(model, IMAGE).plan({"a1": [0]}))
    assert replayed == [2]


class Overwriting(nn.Module):
    """Normalises its input in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(3.0)
        made: Tensor = self.outer(torch.relu(self.inner(x)))
        return made


def test_a_network_that_writes_into_its_input_is_run_on_fresh_ones() -> None:
    model = lively(Overwriting())
    plan = trace(model, torch.randn(2, 6)).plan({"inner": [0, 3, 5]})
    assert apply(model, plan).inner.weight.shape == (5, 6)


class OneAtATime(Residual):
    """Computes something else where the batch is one."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x)
        return made * (2 if len(x) == 1 else 1)


def test_a_network_that_is_wrong_at_batch_size_one_alone_is_not_handed_over() -> None:
    model = lively(OneAtATime())
    plan = trace(model, IMAGE).plan({"a1": [0]})
    with pytest.raises(SurgeryError, match="at batch size 1"):
        apply(model, plan)


def test_a_wrong_repair_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surgery that permutes the channels that it keeps must not pass its own check."""
    import sned.surgery.pytorch as surgery

    model = lively(Residual())
    graph = trace(model, IMAGE)
    honest = surgery.twin

    def dishonest(given: nn.Module, own: dict[str, Tensor]) -> nn.Module:
        return honest(given, {**own, "a1.weight": own["a1.weight"].flip(0)})

    monkeypatch.setattr(surgery, "twin", dishonest)
    with pytest.raises(SurgeryError, match="outputs differ by"):
        apply(model, graph.plan({"a1": [0, 1]}))


def test_a_head_that_is_all_zero_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sned.surgery.pytorch as surgery

    model = lively(Residual())
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
    graph = trace(model, IMAGE)
    plan = graph.plan({"a1": [0, 1]})
    assert torch.equal(call(apply(model, plan), IMAGE), torch.zeros(2, 5))
    honest = surgery.twin
    monkeypatch.setattr(
        surgery, "twin", lambda given, own: honest(given, {**own, "a1.weight": own["a1.weight"].flip(0)})
    )
    with pytest.raises(SurgeryError, match="outputs differ by"):
        apply(model, plan)
