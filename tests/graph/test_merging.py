"""Two passes made one: numbers that follow the batch, and passes that no two batch sizes have in common."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import trace
from sned.graph import Replay
from sned.graph.ir import Affine, Ref
from tests.graph.oracle import call, distance, lively, state

IMAGE = torch.randn(2, 3, 8, 8)


def test_numbers_that_follow_the_batch_are_affine() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.view(x.shape[0] * 3, 4)).view(x.shape[0], 3, 3)

    graph = trace(Flat(), torch.randn(5, 3, 4))
    first = graph.ops[0]
    assert first.name == "view"
    assert first.args == (Ref(graph.inputs[0]), (Affine(0, 3), 4))


OF_THE_BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "half of the rows, rounded up": lambda h: h - h[: (len(h) + 1) // 2].mean(0),
    "two chunks": lambda h: torch.cat([part * (n + 1) for n, part in enumerate(h.chunk(2))]),
    "a view of its square": lambda h: h + (h @ h.T).view(len(h) ** 2).sum(),
    "padded to fours": lambda h: F.pad(h, (0, 0, 0, -len(h) % 4))[: len(h)],
}


@pytest.mark.parametrize("case", OF_THE_BATCH)
def test_numbers_that_are_affine_at_two_sizes_alone_tie_a_graph_to_its_batch(case: str) -> None:
    class Follows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(OF_THE_BATCH[case](self.a(x).relu()))

    model, x = Follows(), torch.randn(7, 6)
    graph = trace(model, x)
    assert not graph.batched
    with torch.no_grad():
        torch.testing.assert_close(Replay(graph, state(model)).run(x)[0][0], model(x))


def test_an_offset_that_holds_at_every_size_does_not() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = F.pad(self.a(x), (0, 0, 0, 9 - len(x)))
            return self.b(h[: len(x)] + h.new_ones(len(x) + 3, 1)[3:])

    model = Padded()
    graph = trace(model, torch.randn(2, 6))
    assert graph.batched
    assert [group.size for group in graph.groups] == [8]
    x = torch.randn(7, 6)
    with torch.no_grad():
        torch.testing.assert_close(Replay(graph, state(model)).run(x)[0][0], model(x))


class OneSize(nn.Module):
    """Takes one batch size only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 4
        return self.b(F.relu(self.a(x)))


def test_a_model_that_takes_one_batch_size() -> None:
    model = lively(OneSize())
    graph = trace(model, torch.randn(4, 4))
    assert not graph.batched
    assert graph.batch == 4
    x = torch.randn(4, 4)
    outputs, _ = Replay(graph, state(model)).run(x)
    assert distance(outputs, call(model, x)) < 1e-6


class Times(nn.Module):
    """Makes a tensor of its own of numbers that depend on the batch: a time for each row, or how many there are."""

    def __init__(self, *, rows: bool) -> None:
        super().__init__()
        self.rows = rows
        self.a, self.times, self.b = nn.Linear(4, 8), nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([3] * len(x) if self.rows else len(x), device=x.device)
        return self.b(F.relu(self.a(x)) * self.times(times))


@pytest.mark.parametrize("rows", [False, True])
def test_tensors_made_of_the_batch_size_tie_a_graph_to_it(rows: bool) -> None:
    model = lively(Times(rows=rows))
    graph, x = trace(model, torch.randn(4, 4)), torch.randn(4, 4)
    assert (graph.batched, graph.batch) == (False, 4)
    outputs, _ = Replay(graph, state(model)).run(x)
    assert distance(outputs, call(model, x)) < 1e-6


class Rows(nn.Module):
    """Takes its batch apart, and reads the rows or not."""

    def __init__(self, *, read: bool) -> None:
        super().__init__()
        self.read = read
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        rows = list(y)
        z = torch.stack(rows) if self.read else y
        return self.b(z.view(*z.shape))


@pytest.mark.parametrize("read", [False, True])
def test_rows_that_nothing_reads_do_not_tie_a_graph_to_its_batch(read: bool) -> None:
    model = lively(Rows(read=read))
    graph = trace(model, torch.randn(2, 4))
    assert graph.batched is not read
    assert [op.index for op in graph.ops] == list(range(len(graph.ops)))
    assert [graph.ops[use.first_op].name for use in graph.uses] == ["view"] * len(graph.uses)
    x = torch.randn(2 if read else 5, 4)
    outputs, _ = Replay(graph, state(model)).run(x)
    assert distance(outputs, call(model, x)) < 1e-6
