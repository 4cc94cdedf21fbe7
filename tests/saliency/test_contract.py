"""What every criterion must keep to, on every kind of network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sned.calibration import Calibration, calibrate
from sned.errors import CalibrationError, PlanError, UserError
from sned.graph.ir import Graph
from sned.saliency import CRITERIA, Scores, from_importance, least_important, score
from sned.saliency.registry import State
from tests.saliency.cases import NAMES, evidence


def check(scores: Scores, network: str) -> None:
    """Raise where the scores are not what `Scores` promises."""
    groups = evidence(network).graph.groups
    assert scores.order.keys() == scores.error.keys() == {group.name for group in groups}
    for group in groups:
        order, error = scores.order[group.name], scores.error[group.name]
        assert sorted(order.tolist()) == list(range(group.size))
        assert error.shape == (group.size + 1,)
        assert error[0] == 0
        assert np.isfinite(error).all()
        assert (np.diff(error) >= 0).all()
        for count in range(0, group.size, group.cell_count):
            gone = least_important(group, order, count)
            assert set(gone) == set(order[:count]), "the cells take turns in the order"
            per_cell = np.bincount(group.cells[gone], minlength=group.cell_count)
            assert (per_cell == count // group.cell_count).all()


@pytest.mark.parametrize("network", NAMES)
@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_scores_are_valid_and_repeatable(name: str, network: str) -> None:
    first = score(name, evidence(network))
    check(first, network)
    again = score(name, evidence(network))
    assert first.criterion == name
    for group, order in first.order.items():
        assert np.array_equal(order, again.order[group])
        np.testing.assert_allclose(first.error[group], again.error[group])


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_state_is_left_alone(name: str) -> None:
    given = evidence("residual")
    before = {key: tensor.clone() for key, tensor in given.state.items()}
    score(name, given)
    assert all(torch.equal(before[key], tensor) for key, tensor in given.state.items())
    assert not any(tensor.grad is not None for tensor in given.state.values())


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"random"}))
def test_a_dead_unit_goes_first(name: str) -> None:
    """All weights of unit 3 are zero: nothing is lost with it, whatever the criterion."""
    given = evidence("residual")
    group = given.graph.group("a1")
    state = {key: tensor.clone() for key, tensor in given.state.items()}
    for slices in group.slices:
        state[slices.parameter].index_fill_(slices.axis, torch.from_numpy(slices.positions[3]), 0.0)
    calibration = given.learnt if not CRITERIA[name].calibrated else _calibrated(given.graph, state)
    scores = score(name, replace(given, state=state, calibration=calibration))
    place = scores.order["a1"].tolist().index(3)
    # GraSP has units go before it that are worse than dead: without them gradients grow.
    assert place == 0 or name in ("geometric-median", "grasp")
    if name not in ("geometric-median", "batchnorm"):
        assert scores.error["a1"][place + 1] == pytest.approx(0, abs=1e-9)


def _calibrated(graph: Graph, state: State) -> Calibration:
    return calibrate(graph, state, None, limit=32)


@pytest.mark.parametrize("name", sorted(n for n, c in CRITERIA.items() if c.calibrated))
def test_calibration_is_asked_for(name: str) -> None:
    with pytest.raises(CalibrationError, match="no calibration was given"):
        score(name, replace(evidence("residual"), calibration=None))


def test_unknown_criteria_list_close_names() -> None:
    with pytest.raises(UserError, match=r"No saliency criterion is called 'tailor'. Did you mean 'taylor'"):
        score("tailor", evidence("residual"))
    with pytest.raises(UserError, match=r"called 'fpgm'\. It is 'geometric-median' here"):
        score("fpgm", evidence("residual"))


def test_importance_is_ranked_within_each_cell() -> None:
    graph = evidence("grouped").graph
    group = next(g for g in graph.groups if g.cell_count > 1)
    importance = {g.name: np.arange(g.size, dtype=float) for g in graph.groups}
    scores = from_importance("test", graph, importance)
    order = scores.order[group.name]
    for cell in range(group.cell_count):
        members = order[group.cells[order] == cell]
        assert (np.diff(members) > 0).all()
    np.testing.assert_allclose(scores.error[group.name], np.append(0, np.cumsum(order.astype(float))))


def test_counts_that_leave_cells_uneven_are_refused() -> None:
    graph = evidence("grouped").graph
    group = next(g for g in graph.groups if g.cell_count > 1)
    order = np.arange(group.size)
    with pytest.raises(PlanError, match=f"a multiple of {group.cell_count} units can go, .* got 1"):
        least_important(group, order, 1)
    with pytest.raises(PlanError, match=f"got {group.size}"):
        least_important(group, order, group.size)
