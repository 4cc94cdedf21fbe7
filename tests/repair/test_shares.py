"""Which weights keep more entries: those whose loss the answers feel, and as many as asked in all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sned.calibration import calibrate
from sned.calibration.consumers import Consumer
from sned.graph.trace import state_of
from sned.repair.shares import allotted, densities
from sned.surgery import trace
from tests.repair.networks import block, images

POINTS = (0.7, 0.5, 0.3)


def felt(factors: list[float]) -> np.ndarray:
    """Answers that move by a factor times the removed share to the third power."""
    return np.array([[factor * (1 - point) ** 3 for point in POINTS] for factor in factors])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 10**6)), min_size=1, max_size=8),
    st.floats(0.05, 0.95),
)
def test_as_many_entries_stay_as_asked(weights: list[tuple[float, int]], density: float) -> None:
    factors, entries = (list(column) for column in zip(*weights, strict=True))
    sizes = np.array(entries, np.float64)
    kept = allotted(felt(factors), POINTS, sizes, density)
    assert sizes @ kept == pytest.approx(density * sizes.sum())
    assert (kept > 0).all()
    assert (kept <= 1).all()


def test_no_other_choice_moves_the_answers_less() -> None:
    factors, sizes = [4.0, 1.0, 0.2], np.array([3.0, 5.0, 9.0])
    kept = allotted(felt(factors), POINTS, sizes, 0.5)

    def moved(choice: tuple[float, ...]) -> float:
        return sum(f * (1 - k) ** 3 for f, k in zip(factors, choice, strict=True))

    others = product(np.linspace(0.3, 1, 36), repeat=2)
    thirds = ((a, b, (0.5 * sizes.sum() - sizes[:2] @ [a, b]) / sizes[2]) for a, b in others)
    best = min(moved(choice) for choice in thirds if 0.3 <= choice[2] <= 1)
    assert moved(tuple(kept)) <= 1.03 * best
    assert moved((0.5, 0.5, 0.5)) > 1.2 * best


def test_a_weight_without_which_nothing_is_answered_keeps_most() -> None:
    moved = np.array([[0.1, np.inf, np.inf], [0.1, 0.2, 0.4]])
    kept = allotted(moved, POINTS, np.array([5.0, 5.0]), 0.5)
    assert kept[0] >= 0.65 > kept[1] > 0
    assert kept.sum() == pytest.approx(1.0)


def test_weights_that_are_felt_alike_keep_alike() -> None:
    assert allotted(felt([2.0, 2.0]), POINTS, np.array([7.0, 7.0]), 0.4) == pytest.approx([0.4, 0.4])


def test_a_layer_that_the_answers_do_not_feel_gives_most() -> None:
    model, x = block(), images(100)
    with torch.no_grad():
        model.bn2.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
    graph, state = trace(model, x[:2]), state_of(model)
    before = {name: tensor.clone() for name, tensor in state.items()}
    calibration = calibrate(graph, state, [x])

    def smallest(_: Consumer, weight: torch.Tensor, __: torch.Tensor, density: float) -> torch.Tensor:
        limit = weight.abs().flatten().kthvalue(max(1, round((1 - density) * weight.numel()))).values
        return weight * (weight.abs() > limit)

    weights = ["stem.weight", "conv1.weight", "conv2.weight", "head.weight"]
    kept = densities(graph, state, calibration, weights, smallest, 0.5)
    # What conv1 gives goes through conv2 alone.
    assert (
        max(kept["conv1.weight"], kept["conv2.weight"])
        < 0.5
        < 0.8
        < min(kept["stem.weight"], kept["head.weight"])
    )
    entries = {name: state[name].numel() for name in weights}
    assert sum(kept[n] * entries[n] for n in weights) == pytest.approx(0.5 * sum(entries.values()))
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_answers_that_cannot_be_derived_leave_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("derivative for aten::op is not implemented")

    monkeypatch.setattr("torch.autograd.grad", refuse)
    model, x = block(), images(100)
    graph, state = trace(model, x[:2]), state_of(model)
    kept = densities(
        graph,
        state,
        calibrate(graph, state, [x]),
        ["stem.weight", "conv1.weight"],
        lambda _, weight, *__: weight,
        0.3,
    )
    assert kept == {"stem.weight": 0.3, "conv1.weight": 0.3}
