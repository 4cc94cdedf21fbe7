"""Plans: what they keep, what they refuse, and their way through JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sned import Graph, Plan, trace
from sned.errors import PlanError
from tests.graph.networks import NETWORKS, Cross, Residual
from tests.graph.oracle import example_of, random_units

IMAGE = torch.randn(2, 3, 8, 8)
GRAPH = trace(Residual(), IMAGE)
GROUPED = trace(NETWORKS["grouped"]()[0], torch.randn(2, 3, 6, 6))


def same(a: Plan, b: Plan) -> bool:
    """Whether two plans hold the same, array for array."""
    kept = {(n, axis): i.tolist() for n, axes in a.kept.items() for axis, i in axes.items()}
    assert kept == {(n, axis): i.tolist() for n, axes in b.kept.items() for axis, i in axes.items()}
    return (a.fingerprint, dict(a.shapes), a.example, dict(a.removed)) == (
        b.fingerprint, dict(b.shapes), b.example, dict(b.removed),
    )  # fmt: skip


def test_kept_names_every_axis_that_changes_and_no_other() -> None:
    plan = GRAPH.plan({"a1": [5, 0]})
    assert plan.removed == {"a1": (0, 5)}
    assert {name: list(axes) for name, axes in plan.kept.items()} == {
        "a1.weight": [0],
        "a1.bias": [0],
        "a2.weight": [1],
    }
    for axes in plan.kept.values():
        for indices in axes.values():
            np.testing.assert_array_equal(indices, [1, 2, 3, 4])
    np.testing.assert_array_equal(plan.counts(GRAPH), [8, 4, 12, 12])


def test_units_in_any_order_and_any_sequence_make_the_same_plan() -> None:
    one = GRAPH.plan({"a1": [1, 3], "stem": (2,)})
    assert same(one, GRAPH.plan({"stem": np.array([2]), "a1": (3, 1, 3)}))


def test_nothing_removed_is_an_empty_plan() -> None:
    plan = GRAPH.plan({"a1": []})
    assert (plan.removed, plan.kept) == ({}, {})
    assert str(plan) == "Plan(0 units out of 0 groups; 0 tensors change)"


@pytest.mark.parametrize(
    ("graph", "removed", "text"),
    [(GRAPH, {"a3": [0]}, r"No group is called 'a3'\. Known: a1, b1, down, stem"),
     (GRAPH, {"a1": [6]}, r"Units of 'a1' are numbered 0 to 5, got 6"),
     (GRAPH, {"a1": [-1]}, r"Units of 'a1' are numbered 0 to 5, got -1"),
     (GRAPH, {"a1": list(range(6))}, r"At least one unit of 'a1' must stay, but all 6"),
     (GROUPED, {"2": [0]}, r"Every cell of '2' must lose equally many units \(4 cells of 6\), got \[")],
)  # fmt: skip
def test_what_a_plan_refuses(graph: Graph, removed: dict[str, list[int]], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        graph.plan(removed)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["grouped", "fused_qkv", "residual", "dict_inputs", "lstm"]))
def test_through_json_it_is_the_same(seed: int, name: str) -> None:
    graph = traced(name)
    plan = graph.plan(random_units(graph, None, seed))
    assert same(Plan.from_json(plan.to_json()), plan)


TRACED: dict[str, Graph] = {}


def traced(name: str) -> Graph:
    """The graph of a network of the list, made once."""
    if name not in TRACED:
        model, inputs = NETWORKS[name]()
        TRACED[name] = trace(model, example_of(inputs))
    return TRACED[name]


def test_json_keeps_the_nesting_of_the_inputs() -> None:
    inputs = {"x": torch.randn(2, 6, 5), "memory": torch.randn(2, 9, 7)}
    plan = trace(Cross(), inputs).plan({})
    again = Plan.from_json(plan.to_json())
    assert again.example == plan.example
    assert set(again.example.kwargs) == {"x", "memory"}


def test_json_is_plain_text() -> None:
    text = GRAPH.plan({"a1": [0]}).to_json()
    data = json.loads(text)
    assert data["removed"] == {"a1": [0]}
    assert data["kept"]["a2.weight"] == {"1": [1, 2, 3, 4, 5]}
    assert str(torch.__path__[0]) not in text


def edited(**changes: Any) -> str:
    """The JSON of a plan with some fields changed."""
    return json.dumps({**json.loads(GRAPH.plan({"a1": [0]}).to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", "null", "[]", "{}", edited(removed=3), edited(kept={"a": {"x": [0]}}), edited(shapes={"a": "b"}),
     edited(example={}), edited(example={"args": {"file": "x"}, "kwargs": {"dict": {}}, "batch": 2}),
     edited(kept={"a": {"0": ["b"]}}), "[" * 100_000],
)  # fmt: skip
def test_json_that_is_no_plan(text: str) -> None:
    with pytest.raises(PlanError, match="plan"):
        Plan.from_json(text)


def test_a_format_of_the_future() -> None:
    with pytest.raises(PlanError, match="reads plans of format 2, got 3"):
        Plan.from_json(edited(format=3))


def test_fingerprints_tell_structures_apart_and_not_weights() -> None:
    assert trace(Residual(), IMAGE).fingerprint == GRAPH.fingerprint
    assert trace(Residual(), torch.randn(4, 3, 8, 8)).fingerprint == GRAPH.fingerprint
    narrow = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    wide = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3))
    gated = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3))
    prints = {trace(model, torch.randn(2, 4)).fingerprint for model in (narrow, wide, gated)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    "units", [["a"], [0.5], [True], [np.float64(1)], "0", [10**30], [-1], [[0]], 99, None]
)
def test_units_are_numbers_of_the_group(units: Any) -> None:
    with pytest.raises(PlanError, match=r"Units of 'a1' are numbered 0 to 5, got"):
        GRAPH.plan({"a1": units})


def test_numpy_s_numbers_are_numbers() -> None:
    assert (
        GRAPH.plan({"a1": np.array([3, 1])}).removed == GRAPH.plan({"a1": [1, 3]}).removed == {"a1": (1, 3)}
    )


def test_what_goes_is_a_dict() -> None:
    with pytest.raises(PlanError, match=r"a dict of unit numbers by group, such as .*, got list"):
        GRAPH.plan([1])  # type: ignore[arg-type]
