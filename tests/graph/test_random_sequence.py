"""Random networks over sequences, random choices: removal equals zeroing, norms seeing only what is left."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sned import apply, trace
from tests.graph.oracle import (
    LIMIT,
    call,
    distance,
    lively,
    norms_of_what_is_left,
    promised,
    random_units,
    size,
    zeroed,
)
from tests.graph.random_sequence import INPUTS, LENGTH, Block, RandomSequence, sequences
from tests.graph.test_groups import check_sound


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sequences(), st.integers(0, 10**6))
def test_the_pruned_network_is_the_original_with_what_goes_set_to_zero(
    made: tuple[int, tuple[Block, ...]], seed: int
) -> None:
    model = lively(RandomSequence(*made), seed)
    inputs = torch.randn(3, LENGTH, INPUTS, generator=torch.Generator().manual_seed(seed))
    graph = trace(model, inputs[:2])
    check_sound(graph)
    removed = random_units(graph, None, seed)
    plan = graph.plan(removed)
    small = apply(model, plan)
    assert size(small) == promised(model, plan)
    exact = all(graph.group(name).exact for name in removed)
    with nullcontext() if exact else norms_of_what_is_left():
        expected = zeroed(model, graph, removed, inputs)
    assert distance(call(small, inputs), expected) < LIMIT
