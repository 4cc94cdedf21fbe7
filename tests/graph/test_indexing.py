"""Rows that are picked, written and added to by index: the axes beside them go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sned import Graph, trace
from tests.graph.oracle import call, distance, halved, lively, zeroed

ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
INTO = torch.tensor([0, 3, 3, 1, 0, 5])
"""Where each row goes: two pairs share a place, two places get none."""
PICKED = torch.tensor([True, False, True, True, False, False])


def at(index: Tensor, like: Tensor) -> Tensor:
    return index[:, None].expand_as(like)


def kept(target: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    """What is left of a tensor after something was written into it."""
    write(target)
    return target


def put(target: Tensor, index: object, values: object) -> Tensor:
    target[index] = values
    return target


WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_add": lambda x, y: torch.zeros_like(x).index_add(0, INTO, y),
    "index_add_": lambda x, y: x.clone().index_add_(0, INTO, y),
    "index_copy_": lambda x, y: x.clone().index_copy_(0, INTO[:3], y[:3]),
    "index_reduce_": lambda x, y: x.clone().index_reduce_(0, INTO, y, "mean"),
    "scatter_add_": lambda x, y: x.clone().scatter_add_(0, at(INTO, y), y),
    "scatter_reduce": lambda x, y: x.scatter_reduce(0, at(INTO, y), y, "amax"),
    "rows": lambda x, y: put(x.clone(), INTO[:2], y[:2]),
    "rows added": lambda x, y: kept(x.clone(), lambda z: z.index_put_((INTO,), y, accumulate=True)),
    "rows by a mask": lambda x, y: put(x.clone(), PICKED, y[PICKED]),
    "one row for all": lambda x, y: put(x.clone(), PICKED, y[0]),
    "behind an axis": lambda x, y: put(x.clone()[None], (slice(None), INTO[:2]), y[None, :2])[0],
    "a list that is a tuple": lambda x, y: put(x.clone()[None], [slice(None), INTO[:2]], y[None, :2])[0],
    "around an axis": lambda x, y: put(x[None, ..., None].clone(), (0, slice(None), slice(None), 0), y)[
        0, ..., 0
    ],
}


class Written(nn.Module):
    """Two layers whose rows meet by index; what reads them may be a sum, which notices every unit."""

    def __init__(
        self, write: Callable[[Tensor, Tensor], Tensor], act: Callable[[Tensor], Tensor] = torch.tanh
    ) -> None:
        super().__init__()
        self.into, self.values, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.write, self.act = write, act

    def forward(self, x: Tensor) -> Tensor:
        y = self.write(torch.tanh(self.into(x)), self.act(self.values(x)))
        return self.out(y) + y.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_by_index_loses_the_same_units(name: str) -> None:
    model = lively(Written(WRITES[name]))
    small, graph, plan = halved(model, ROWS)
    assert small.into.weight.shape == small.values.weight.shape == (4, 5)
    assert distance(call(small, ROWS), zeroed(model, graph, plan.removed, ROWS)) < 1e-5


def inexact(graph: Graph) -> set[str]:
    return {group.name for group in graph.groups if not group.exact}


@pytest.mark.parametrize("name", ["index_add", "scatter_add_", "rows"])
def test_rows_that_are_not_zero_where_their_layer_is_are_noticed_by_a_sum(name: str) -> None:
    assert inexact(trace(lively(Written(WRITES[name], torch.sigmoid)), ROWS)) == {"into"}
    assert not inexact(trace(lively(Written(WRITES[name])), ROWS))


@pytest.mark.parametrize("number", [0.0, 3.0])
@pytest.mark.parametrize(
    "write",
    [
        lambda x, number: x.index_fill(0, INTO[:2], number),
        lambda x, number: put(x.clone(), INTO[:2], number),
        lambda x, number: x.scatter(0, at(INTO, x), number),
    ],
    ids=["index_fill", "rows", "scatter"],
)
def test_a_number_that_is_written_is_noticed_by_a_sum(
    write: Callable[[Tensor, float], Tensor], number: float
) -> None:
    graph = trace(lively(Written(lambda x, y: write(x, number) + y)), ROWS)
    assert "into" in inexact(graph) or not number


def test_axes_that_are_indexed_stay() -> None:
    def across(x: Tensor, y: Tensor) -> Tensor:
        return put(x.clone(), (slice(None), INTO[:2]), y[:, :2])

    graph = trace(lively(Written(across)), ROWS)
    assert {frozen.name for frozen in graph.frozen if "by index" in frozen.reason} >= {"into", "values"}


class Experts(nn.Module):
    """A sparse mixture: each expert gets the rows that the router gives it, and adds to them."""

    def __init__(self, by_mask: bool) -> None:
        super().__init__()
        self.stem, self.router, self.out = nn.Linear(5, 8), nn.Linear(5, 3), nn.Linear(8, 2)
        self.experts, self.by_mask = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), by_mask

    def forward(self, x: Tensor) -> Tensor:
        h, chosen = torch.relu(self.stem(x)), self.router(x).argmax(-1)
        y = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if self.by_mask:
                y[mine] += expert(h[mine])
            else:
                (rows,) = torch.where(mine)
                y.index_add_(0, rows, expert(h[rows]))
        return self.out(h + y)


@pytest.mark.parametrize("by_mask", [False, True])
def test_experts_that_get_rows_by_value_are_cut_with_the_stream_that_they_add_to(by_mask: bool) -> None:
    model = lively(Experts(by_mask))
    small, graph, plan = halved(model, ROWS)
    assert small.stem.weight.shape == (4, 5)
    assert {tuple(expert.weight.shape) for expert in small.experts} == {(4, 4)}
    assert distance(call(small, ROWS), zeroed(model, graph, plan.removed, ROWS)) < 1e-5
