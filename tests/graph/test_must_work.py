"""What must work without per-model code: one network a line, pruned in all its groups, held against zeroing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor

from sned import Graph, apply, trace
from tests.graph.networks import NETWORKS, LlamaNorm
from tests.graph.oracle import (
    LIMIT,
    call,
    distance,
    example_of,
    lively,
    longer,
    norms_of_what_is_left,
    promised,
    random_units,
    size,
    state,
    zeroed,
)

REMAINING = 0.7
"""Half of every group gone must leave at most this much of every network here."""


@contextmanager
def roots_of_what_is_left() -> Iterator[None]:
    """`LlamaNorm` whose mean leaves out channels that are zero everywhere."""

    def forward(self: LlamaNorm, x: Tensor) -> Tensor:
        left = (x != 0).any(0).any(0).sum()
        return self.weight * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / left + self.epsilon))

    with mock.patch.object(LlamaNorm, "forward", forward):
        yield


def as_if_gone(name: str, graph: Graph) -> AbstractContextManager[None]:
    """Where a norm spans what goes, zeroing must leave it out of the statistics to equal removal."""
    if all(group.exact for group in graph.groups):
        return nullcontext()
    return roots_of_what_is_left() if name == "rms_norm_by_hand" else norms_of_what_is_left()


def check(name: str, sparsity: float | None, seed: int) -> float:
    """Prune one network, hold it against its zeroed self at two batch sizes, and return the fraction that remains."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    lively(model)
    before = {key: tensor.clone() for key, tensor in state(model).items()}
    graph = trace(model, example_of(inputs))
    removed = random_units(graph, sparsity, seed)
    plan = graph.plan(removed)
    small = apply(model, plan)
    assert type(small) is type(model)
    assert size(small) == promised(model, plan)
    for given in (inputs, longer(inputs)):
        with as_if_gone(name, graph):
            expected = zeroed(model, graph, removed, *given)
        assert distance(call(small, *given), expected) < LIMIT
    after = state(model)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    return size(small) / size(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_group_can_go(name: str) -> None:
    assert check(name, 0.5, 0) <= REMAINING


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_can_lose_a_share_of_its_own(name: str) -> None:
    assert check(name, None, 3) < 1


def test_an_answer_keeps_its_type() -> None:
    for name in ("returns_tuple", "returns_dict", "returns_dataclass"):
        model, inputs = NETWORKS[name]()
        graph = trace(model, example_of(inputs))
        small = apply(model, graph.plan(random_units(graph, 0.5, 0)))
        assert type(call(small, *inputs)) is type(call(model, *inputs))
