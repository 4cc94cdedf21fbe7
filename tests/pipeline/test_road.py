"""The short road as a user walks it from Python: what it chose and why, and what it hands over."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.repair.match import Matched, match
from tests.pipeline.networks import BATCHES, X, pruned, small


def test_a_network_with_zeros_is_the_same_in_the_report_and_once_saved_and_loaded(tmp_path: Path) -> None:
    sparse = sned.sparsify(small(), X, sparsity=0.6, calibration=BATCHES).model
    fresh = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))

    def answers(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(fresh)

    result = pruned(sparse, evaluate=lambda model: float(answers(model).square().sum()))
    sned.save(result.model, tmp_path / "small.safetensors")
    loaded = sned.load(small(), tmp_path / "small.safetensors").eval()
    assert torch.equal(answers(loaded), answers(result.model))
    assert result.report.after.accuracy == pytest.approx(float(answers(loaded).square().sum()))
    assert any("Repair chose 'least squares" in note for note in result.report.notes)


class Heard:
    """Notes what is shown."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    @contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Any]:
        self.labels.append(label)
        yield lambda amount=1: None


def test_all_that_takes_long_is_shown() -> None:
    heard = Heard()
    pruned(progress=heard)
    assert [
        label for label in heard.labels if label in ("tracing", "cutting and verifying", "exporting")
    ] == [
        "tracing",
        "exporting",
        "cutting and verifying",
        "exporting",
    ]
    thinned = Heard()
    sned.sparsify(small(), X, sparsity=0.5, calibration=BATCHES, progress=thinned)
    assert [thinned.labels[0], thinned.labels[-1]] == ["tracing", "cutting and verifying"]


# --- what it chose, and why ------------------------------------------------------------------------------------------


def test_the_report_says_what_was_chosen_and_why() -> None:
    notes = " ".join(pruned().report.notes)
    assert (
        "ranked by 'reconstruction', each group's error weighed by what it does to the answers: the default"
        in notes
    )
    assert "chosen by 'knapsack', the default for a budget" in notes
    notes = " ".join(pruned(calibration=None, budget=sned.Budget(sparsity=0.5)).report.notes)
    assert "ranked by 'l2': the default, for want of calibration inputs" in notes
    assert "chosen by 'uniform', the default for a sparsity" in notes
    assert "Nothing was repaired" in notes


def test_what_was_asked_for_is_said_to_be_and_random_inputs_are_told_of() -> None:
    notes = " ".join(pruned(calibration=None, saliency="snip", search_by="global").report.notes)
    assert "ranked by 'snip', as asked, on random inputs, for want of real ones" in notes
    assert "chosen by 'global', as asked" in notes
    notes = " ".join(pruned(calibration=None, saliency="synflow").report.notes)
    assert "ranked by 'synflow', as asked." in notes


def test_a_budget_that_is_kept_already_removes_nothing_and_says_so() -> None:
    result = pruned(budget=sned.Budget(macs=1e12))
    assert result.plan.removed == {}
    assert "The network keeps the budget as it is, so nothing was removed." in result.report.notes


def test_the_trade_off_curve_comes_from_one_calibration() -> None:
    read = []

    def once() -> Iterator[Tensor]:
        read.append(1)
        yield from BATCHES

    curve = pruned(calibration=once(), budget=sned.Budget(macs="60%")).report.curve
    assert curve is not None
    assert read == [1]
    assert 8 <= len(curve.points) <= 11
    assert sum(point.chosen for point in curve.points) == 1
    assert all(0 <= point.quality <= 1 for point in curve.points)
    assert curve.points[-1].quality == max(point.quality for point in curve.points)


# --- rules -----------------------------------------------------------------------------------------------------------


def test_matching_learns_from_more_inputs_than_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("sned.calibration.calibrate"), "FEWEST", 24)
    monkeypatch.setattr(importlib.import_module("sned.calibration.calibrate"), "MOST", 24)
    many = [*BATCHES, *list(torch.randn(48, 3, 8, 8).split(16))]
    given: list[int] = []

    def matched(model: nn.Module, dense: nn.Module, batches: Any, **options: Any) -> Matched:
        given.extend(len(batch[0]) for batch in batches)
        return match(model, dense, [(torch.cat(many),)], steps=2)

    monkeypatch.setattr(importlib.import_module("sned.repair.match"), "match", matched)
    result = pruned(calibration=many, match_seconds=1.0)
    assert sum(given) == 80
    assert result.report.asked.calibration == (
        "24 calibration inputs, without labels, and 56 more to match the network on"
    )
    given.clear()
    pruned(calibration=many)
    assert given == []


@pytest.mark.parametrize(
    ("given", "compared", "told"),
    [
        (32, slice(26, 32), "6 calibration inputs that repair held out"),
        (10, slice(10), "10 calibration inputs"),
    ],
)
def test_agreement_is_that_on_inputs_that_repair_did_not_fit_to(
    given: int, compared: slice, told: str
) -> None:
    inputs = torch.cat(BATCHES)[:given]
    result = pruned(calibration=[inputs])
    with torch.no_grad():
        same = small()(inputs[compared]).argmax(1) == result.model(inputs[compared]).argmax(1)
    assert result.report.after.agreement == pytest.approx(float(same.float().mean()))
    assert result.report.asked.compared == told
