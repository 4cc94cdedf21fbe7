"""Random small CNNs, random choices: removal equals zeroing, and other things that must hold whatever the network."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sned import Plan, apply, trace
from sned.graph import Replay
from tests.graph.oracle import LIMIT, call, distance, lively, promised, random_units, size, state, zeroed
from tests.graph.random_cnn import SIDE, RandomCnn, Step, programs

FEW = settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


def made(program: tuple[Step, ...], seed: int) -> tuple[nn.Module, torch.Tensor]:
    """The network of a program with weights of a seed, and two images."""
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return lively(RandomCnn(program), seed), images


@settings(FEW, max_examples=60)
@given(programs(), SEEDS)
def test_the_pruned_network_is_the_original_with_what_goes_set_to_zero(
    program: tuple[Step, ...], seed: int
) -> None:
    model, images = made(program, seed)
    graph = trace(model, images)
    removed = random_units(graph, None, seed)
    plan = graph.plan(removed)
    small = apply(model, plan)
    assert size(small) == promised(model, plan)
    assert all(group.exact for group in graph.groups)
    for batch in (images, torch.cat([images, images[:1]])):
        assert distance(call(small, batch), zeroed(model, graph, removed, batch)) < LIMIT
    gone = {(s.parameter, s.axis): set() for g in graph.groups for s in g.slices}  # type: ignore[var-annotated]
    for name, units in removed.items():
        for s in graph.group(name).slices:
            gone[s.parameter, s.axis] |= set(s.positions[units].ravel().tolist())
    for name, axes in plan.kept.items():
        for axis, kept in axes.items():
            assert not gone[name, axis] & set(kept.tolist())
            assert len(gone[name, axis]) + len(kept) == state(model)[name].shape[axis]


@FEW
@given(programs(), SEEDS)
def test_units_of_zero_weight_change_nothing(program: tuple[Step, ...], seed: int) -> None:
    model, images = made(program, seed)
    graph = trace(model, images)
    removed = random_units(graph, None, seed)
    with torch.no_grad():
        for name, units in removed.items():
            for s in graph.group(name).slices:
                state(model)[s.parameter].index_fill_(
                    s.axis, torch.as_tensor(np.unique(s.positions[units])), 0
                )
    assert distance(call(apply(model, graph.plan(removed)), images), call(model, images)) < LIMIT


@FEW
@given(programs(), SEEDS)
def test_pruning_twice_composes(program: tuple[Step, ...], seed: int) -> None:
    """First some units, then some of what is left: the same as zeroing both, and saved plans say so."""
    model, images = made(program, seed)
    graph = trace(model, images)
    first = random_units(graph, 0.3, seed)
    once = apply(model, graph.plan(first))
    again = trace(once, images)
    second = random_units(again, 0.3, seed + 1)
    twice = apply(once, again.plan(second))
    assert distance(call(twice, images), zeroed(once, again, second, images)) < LIMIT
    (out,), _ = Replay(again, state(once), again.plan(second)).run(images)
    assert distance(out, call(twice, images)) < LIMIT
    assert size(twice) <= size(once) <= size(model)


@FEW
@given(programs(), SEEDS)
def test_pruning_in_two_steps_is_pruning_in_one(program: tuple[Step, ...], seed: int) -> None:
    """Groups that are not divided into cells keep their units in order, so the steps can be added up."""
    model, images = made(program, seed)
    graph = trace(model, images)
    rng = np.random.default_rng(seed)
    free = [g for g in graph.groups if g.size >= 4 and g.cell_count == 1 and "#" not in g.name]
    orders = {g.name: rng.permutation(g.size)[:2].tolist() for g in free}
    first = {name: [a] for name, (a, _) in orders.items()}
    once = apply(model, graph.plan(first))
    again = trace(once, images)
    second = {
        name: [b - (b > a)] for name, (a, b) in orders.items() if name in {g.name for g in again.groups}
    }
    if second.keys() != first.keys() or any(again.group(n).size != graph.group(n).size - 1 for n in second):
        return  # a group that shrank to something else: nothing to compare
    twice = apply(once, again.plan(second))
    together = apply(model, graph.plan(orders))
    assert [p.shape for p in twice.parameters()] == [p.shape for p in together.parameters()]
    assert distance(call(twice, images), call(together, images)) < LIMIT


@FEW
@given(programs(), SEEDS)
def test_permuting_the_units_of_a_group_permutes_nothing_in_the_result(
    program: tuple[Step, ...], seed: int
) -> None:
    """The same channels in another order, and a plan that removes the same ones: the answers are the same."""
    model, images = made(program, seed)
    graph = trace(model, images)
    rng = np.random.default_rng(seed)
    group = next(
        (g for g in graph.groups if g.cell_count == 1 and not overlapping(g.name, graph.groups)), None
    )
    if group is None:
        return
    order = rng.permutation(group.size)
    other = lively(RandomCnn(program), seed)
    with torch.no_grad():
        for s in group.slices:
            index = np.arange(state(other)[s.parameter].shape[s.axis])
            index[s.positions.ravel()] = s.positions[order].ravel()
            tensor = state(other)[s.parameter]
            tensor.copy_(tensor.index_select(s.axis, torch.from_numpy(index)))
    assert distance(call(other, images), call(model, images)) < LIMIT
    gone = rng.permutation(group.size)[: group.size // 2].tolist()
    there = np.argsort(order)[gone].tolist()
    one, two = apply(model, graph.plan({group.name: gone})), apply(other, graph.plan({group.name: there}))
    assert distance(call(two, images), call(one, images)) < LIMIT


def overlapping(name: str, groups: tuple[object, ...]) -> bool:
    """Whether a group shares positions with another one (heads and their dimensions, whole groups of a convolution)."""
    return "#" in name or any(getattr(g, "name", "").startswith(f"{name}#") for g in groups)


@FEW
@given(programs(), SEEDS)
def test_a_plan_survives_json_and_applies_to_a_fresh_copy(program: tuple[Step, ...], seed: int) -> None:
    model, images = made(program, seed)
    graph = trace(model, images)
    plan = graph.plan(random_units(graph, None, seed))
    again = Plan.from_json(plan.to_json())
    assert again.removed == plan.removed
    one, two = apply(model, plan), apply(lively(RandomCnn(program), seed), again)
    assert torch.equal(call(one, images), call(two, images))
