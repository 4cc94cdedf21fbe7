"""Zeros with repair: as many as asked, closer to the dense network than magnitude, held by the result."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sned
from sned.errors import BudgetError, CalibrationError, ModelError, PlanError
from sned.graph.trace import state_of
from sned.repair import sparsify
from sned.surgery import masks_of
from tests.repair.networks import Routed, block, images


def distance(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).square().mean() / b(x).var())


def by_magnitude(model: nn.Module, names: list[str], sparsity: float) -> nn.Module:
    """The usual way: the smallest weights of each layer go, the others stay as they are."""
    thin = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            weight = thin.get_parameter(name)
            limit = weight.abs().flatten().kthvalue(round(sparsity * weight.numel())).values
            weight.mul_(weight.abs() > limit)
    return thin


def test_half_of_the_weights_go_and_the_others_answer_for_them() -> None:
    model, x, fresh = block(), images(200), images(64, seed=7)
    sparse = sparsify(model, x[:2], sparsity=0.5, calibration=[x])
    masks = masks_of(sparse.model)
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert zeros / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.5, abs=0.02)
    assert sparse.sparsity == pytest.approx(0.5, abs=0.02)
    state = state_of(sparse.model)
    assert all(not bool(state[name][~mask].any()) for name, mask in masks.items())
    plain = by_magnitude(model, list(masks), 0.5)
    assert distance(sparse.model, model, fresh) < 0.5 * distance(plain, model, fresh)
    assert "weights in" in sparse.note


@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
def test_patterns_hold_in_the_result(pattern: str) -> None:
    model, x = block(), images(100)
    sparse = sparsify(
        model, x[:2], sparsity=None if ":" in pattern else 0.5, pattern=pattern, calibration=[x]
    )
    masks = masks_of(sparse.model)
    assert masks
    for mask in masks.values():
        inputs = mask.reshape(mask.shape[0], mask.shape[1], -1)
        fours = inputs[:, : inputs.shape[1] // 4 * 4].reshape(mask.shape[0], -1, 4, inputs.shape[2])
        counts = set(fours.sum(2).flatten().tolist())
        assert counts <= ({2} if pattern == "2:4" else {0, 4})


def test_pruned_first_then_thinned_then_saved(tmp_path: Path) -> None:
    model, x = block(), images(100)
    small = sned.apply(model, sned.plan(sned.trace(model, x[:2]), sparsity=0.4))
    sparse = sparsify(small, x[:2], sparsity=0.5, calibration=[x])
    sned.save(sparse.model, tmp_path / "both.safetensors")
    again = sned.load(block(), tmp_path / "both.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), sparse.model(x))
    assert {n: m.tolist() for n, m in masks_of(again).items()} == {
        n: m.tolist() for n, m in masks_of(sparse.model).items()
    }


def test_zeros_of_a_network_that_is_thinned_again_stay_and_count() -> None:
    model, x = block(), images(100)
    once = sparsify(model, x[:2], sparsity=0.7, calibration=[x])
    twice = sparsify(once.model, x[:2], pattern="1x4", sparsity=0.6, calibration=[x])
    before, after = masks_of(once.model), masks_of(twice.model)
    assert before.keys() == after.keys()
    assert all(not bool((after[name] & ~mask).any()) for name, mask in before.items())
    assert sum(int(m.sum()) for m in after.values()) < sum(int(m.sum()) for m in before.values())
    state = state_of(twice.model)
    zeros = sum(int((state[name] == 0).sum()) for name in after)
    assert twice.sparsity == pytest.approx(zeros / sum(m.numel() for m in after.values()))
    assert all(not bool(state[name][~mask].any()) for name, mask in after.items())
    with torch.no_grad():
        answers = twice.model(x)
        assert torch.equal(copy.deepcopy(twice.model)(x), answers)
        assert torch.allclose(sned.apply(twice.model, twice.plan)(x), answers, atol=1e-5)


def test_the_model_is_not_touched() -> None:
    model, x = block(), images(40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sparsify(model, x[:2], sparsity=0.5, calibration=[x])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert masks_of(model) == {}


@pytest.mark.parametrize(
    ("asked", "text"),
    [({}, r"in \(0, 1\), got None"),
     ({"sparsity": 1.5}, r"in \(0, 1\), got 1.5"),
     ({"sparsity": 0.7, "pattern": "2:4"}, r"makes 50% of the weights zero, but 70% was asked"),
     ({"sparsity": "50%"}, r"a number in \(0, 1\), got '50%'"),
     ({"sparsity": True}, r"a number in \(0, 1\), got True"),
     ({"sparsity": 0.5, "pattern": "2 of 4"}, r"got '2 of 4'"),
     ({"sparsity": 0.5, "pattern": None}, r"got None"),
     ({"sparsity": 0.5, "pattern": 24}, r"got 24")],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_any_input_is_read(asked: dict[str, object], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        sparsify(block(), images(8)[:2], calibration=unread(), **asked)


def unread() -> Iterator[torch.Tensor]:
    raise AssertionError("inputs were read")
    yield images(8)


def test_a_network_that_has_not_as_many_inputs_as_the_pattern_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"can be thinned: none .* has 32 inputs or more. Ask for a pattern of fewer"
    ):
        sparsify(block(), images(8)[:2], calibration=[images(8)], pattern="16:32")


def test_too_few_inputs_to_match_on_are_refused_once_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["sned.repair.sparsify"], "thin", lambda *a, **k: pytest.fail("too late"))
    with pytest.raises(CalibrationError, match="at least 32 inputs, got 31"):
        sparsify(block(), images(8)[:2], sparsity=0.5, calibration=[images(31)], match_seconds=4.0)


@pytest.mark.usefixtures("steps_for_seconds")
def test_zeros_hold_while_the_others_match_the_original() -> None:
    model, x, fresh = block(), images(200), images(64, seed=7)
    plain = sparsify(model, x[:2], pattern="1:4", calibration=[x])
    matched = sparsify(model, x[:2], pattern="1:4", calibration=[x], match_seconds=4.0)
    state = state_of(matched.model)
    masks = masks_of(matched.model)
    assert {n: m.tolist() for n, m in masks.items()} == {
        n: m.tolist() for n, m in masks_of(plain.model).items()
    }
    assert all(not bool(state[name][~mask].any()) for name, mask in masks.items())
    assert distance(matched.model, model, fresh) < distance(plain.model, model, fresh)
    assert "Matching: " in matched.note


def test_nothing_is_matched_on_random_inputs_and_that_is_said() -> None:
    sparse = sparsify(block(), images(8)[:2], sparsity=0.5, match_seconds=4.0)
    assert "Nothing was matched" in sparse.note


def test_what_stays_dense_is_named_and_counted() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.steps = nn.Linear(3, 16), nn.LSTM(16, 8, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.steps(self.before(x))[0][:, -1])

    model, x = Recurrent().eval(), torch.randn(60, 5, 3)
    sparse = sparsify(model, x[:2], sparsity=0.5, calibration=[x])
    zeros = sum(int((state_of(sparse.model)[name] == 0).sum()) for name in ("before.weight", "head.weight"))
    share = zeros / sum(parameter.numel() for parameter in model.parameters())
    assert f"{share:.1%} of all (dense stay steps.weight_hh_l0, steps.weight_ih_l0)," in sparse.note


@pytest.mark.parametrize("seconds", [0, float("nan"), "10", True])
def test_a_time_to_match_is_more_than_none(seconds: Any) -> None:
    with pytest.raises(BudgetError, match=f"more than 0 seconds, got {seconds!r}"):
        sparsify(block(), images(8)[:2], sparsity=0.5, calibration=unread(), match_seconds=seconds)


def test_rows_that_a_router_picks_are_told_of() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(64, 6) for _ in range(2)]
    with pytest.raises(
        ModelError, match=r"rows that enter a layer must not depend on values, but 'experts\.\d' gets"
    ):
        sparsify(Routed().eval(), batches[0], sparsity=0.8, calibration=batches)
