"""Sensitivities against networks that were really cut, zeroed or left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.calibration import calibrate
from sned.graph.replay import Replay
from sned.graph.trace import state_of, trace
from sned.saliency import Evidence, Sensitivity, least_important, score, sensitivities, weighed
from sned.saliency.mending import mended
from sned.saliency.sensitivity import bent, counts_at, divergence
from tests.saliency.cases import NAMES, evidence


@pytest.mark.parametrize("network", NAMES)
def test_agrees_with_networks_cut_as_a_whole(network: str) -> None:
    """Running on from the first changed op equals running the cut network on the inputs."""
    given = evidence(network)
    graph, calibration = given.graph, given.learnt
    scores = score("l2", given)
    found = sensitivities(given, scores, points=(0.5,), inputs=16, repair=False)
    dense = [output.double() for output in calibration.outputs(0, 16)]
    for group in graph.groups:
        (count,) = found[group.name].removed
        gone = least_important(group, scores.order[group.name], count).tolist()
        replay = Replay(graph, given.state, graph.plan({group.name: gone}))
        runs = [replay.run(batch)[0] for batch in calibration.batches(0, 16)]
        outputs = [torch.cat(parts).double() for parts in zip(*runs, strict=True)]
        expected = sum(divergence(a, b.detach()) for a, b in zip(dense, outputs, strict=True))
        assert found[group.name].divergence[0] == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("network", ["residual", "dense", "grouped", "group_norm"])
def test_repair_lowers_the_divergence_of_most_groups(network: str) -> None:
    given = evidence(network)
    scores = score("reconstruction", given)
    plain = sensitivities(given, scores, points=(0.5,), repair=False)
    repaired = sensitivities(given, scores, points=(0.5,), repair=True)
    better = [repaired[name].divergence[0] <= plain[name].divergence[0] * 1.05 + 1e-9 for name in plain]
    assert np.mean(better) >= 0.5
    total = [sum(s.divergence[0] for s in found.values()) for found in (plain, repaired)]
    assert total[1] <= total[0] * 1.01 + 1e-9


class Copies(nn.Module):
    """Hidden units 3 to 5 repeat units 0 to 2; the inputs have a mean, so biases matter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False)
        self.after, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)
        with torch.no_grad():
            self.a.weight[3:] = self.a.weight[:3]
            self.a.bias[3:] = self.a.bias[:3]

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.b(torch.relu_(self.norm(self.a(x)))))
        return self.head(x.mean((2, 3)))


def test_copies_are_mended_without_loss() -> None:
    torch.manual_seed(0)
    model = Copies().eval()
    graph = trace(model, torch.zeros(2, 2, 6, 6))
    state = state_of(model)
    given = Evidence(graph, state, calibrate(graph, state, [torch.randn(64, 2, 6, 6) + 1], limit=64))
    scores = score("reconstruction", given)
    plain = sensitivities(given, scores, points=(0.5,), repair=False)["a"]
    repaired = sensitivities(given, scores, points=(0.5,))["a"]
    assert repaired.divergence[0] < 1e-3 * plain.divergence[0]


def test_mending_nothing_changes_nothing() -> None:
    given = evidence("grouped")
    changed = mended(given.graph, {}, given.learnt, given.state, of=[g.index for g in given.graph.groups])
    assert changed
    for name, tensor in changed.items():
        torch.testing.assert_close(tensor, given.state[name], check_dtype=True)


def test_around_a_cut_network_only_what_comes_on_top_counts() -> None:
    given = evidence("residual")
    graph, scores = given.graph, score("reconstruction", given)
    around = {"a1": 3, "down": 4}
    found = sensitivities(given, scores, points=(0.5,), around=around, repair=False)
    units = {n: least_important(graph.group(n), scores.order[n], c).tolist() for n, c in around.items()}
    more = {**units, "b1": least_important(graph.group("b1"), scores.order["b1"], 6).tolist()}
    dense = torch.cat([Replay(graph, given.state).run(b)[0][0] for b in given.learnt.batches()]).double()
    moved = []
    for removed in (units, more):
        replay = Replay(graph, given.state, graph.plan(removed))
        cut = torch.cat([replay.run(b)[0][0] for b in given.learnt.batches()]).double()
        moved.append(divergence(dense.detach(), cut.detach()))
    assert found["b1"].divergence[0] == pytest.approx(max(moved[1] - moved[0], 0), rel=1e-3, abs=1e-8)


def test_weighed_curves_pass_through_the_points() -> None:
    given = evidence("residual")
    scores = score("reconstruction", given)
    found = sensitivities(given, scores)
    result = weighed(scores, found)
    for group in given.graph.groups:
        error, at = result.error[group.name], list(found[group.name].removed)
        highest = np.maximum.accumulate(np.maximum(found[group.name].divergence, 1e-9))
        np.testing.assert_allclose(error[at], highest, rtol=1e-6)
        assert error[0] == 0
        assert (np.diff(error) >= 0).all()
        assert np.array_equal(result.order[group.name], scores.order[group.name])


def test_answers_that_are_no_numbers_are_as_bad_as_can_be() -> None:
    class Fragile(nn.Module):
        """The logarithm of a sum that is below zero as soon as a unit is missing."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)
            with torch.no_grad():
                self.a.weight.zero_()
                self.a.bias.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return torch.log(self.a(x).sum(1, keepdim=True) - 3.5)

    graph = trace(Fragile().eval(), torch.zeros(2, 3))
    state = state_of(graph.model)
    given = Evidence(graph, state, calibrate(graph, state, [torch.randn(8, 3)]))
    scores = score("l2", given)
    found = sensitivities(given, scores, points=(0.25, 0.5), repair=False)
    assert found["a"].divergence.tolist() == [1e6, 1e6]
    assert np.isfinite(weighed(scores, found).error["a"]).all()


def test_one_point_scales_the_curve() -> None:
    curve = np.array([0.0, 1.0, 3.0, 9.0, 10.0])
    np.testing.assert_allclose(bent(curve, Sensitivity((2,), np.array([0.6]))), curve / 5)


def test_between_points_the_curve_follows_a_power_law() -> None:
    curve = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    np.testing.assert_allclose(bent(curve, Sensitivity((1, 3), np.array([1.0, 16.0]))), curve**2)


def test_a_flat_curve_stays_as_it_is() -> None:
    curve = np.zeros(4)
    np.testing.assert_array_equal(bent(curve, Sensitivity((1, 2), np.array([0.0, 0.0]))), curve)


def test_points_respect_cells_and_never_take_all() -> None:
    group = next(g for g in evidence("grouped").graph.groups if g.cell_count == 4)
    assert counts_at(group, (0.01, 0.5, 0.99)) == (4, 12, 20)
    assert counts_at(group, (0.5, 0.5)) == (12,)


def test_divergence_of_distributions_is_that_of_their_softened_softmax() -> None:
    dense, other = (
        torch.tensor([[2.0, 0.0], [1.0, -1.0]]).double(),
        torch.tensor([[0.0, 0.0], [1.0, -1.0]]).double(),
    )
    p, q = 1 / (1 + np.exp(-2.0)), 0.5
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / q)
    assert divergence(dense, other) == pytest.approx(expected / 2)
    assert divergence(dense * 10, other * 10) == pytest.approx(expected / 2), (
        "the scale of the logits is divided out"
    )
    assert divergence(dense, dense + 3) == pytest.approx(0, abs=1e-12), (
        "nor does what is added to all classes matter"
    )


def test_divergence_of_other_outputs_is_relative_to_their_variance() -> None:
    dense = torch.tensor([[[1.0, -1.0]], [[3.0, -3.0]]]).double()
    assert divergence(dense, dense + 1) == pytest.approx(1 / (2 * 5))
    assert divergence(dense * 10, dense * 10 + 10) == pytest.approx(1 / (2 * 5))
