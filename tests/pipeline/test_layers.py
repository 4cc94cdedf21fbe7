"""Whole layers that are left out on the short road."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import PlanError
from tests.pipeline.networks import BATCHES, X


class Block(nn.Module):
    """A residual branch of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Deep(nn.Module):
    """Four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*[Block() for _ in range(4)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.blocks(self.stem(x))).mean((2, 3)))


def deep() -> nn.Module:
    torch.manual_seed(0)
    return Deep().eval()


BLOCK_MACS = 2 * 8 * 8 * 9 * 64


def test_layers_alone_are_left_out() -> None:
    model = deep()
    result = sned.prune(model, X, without="blocks.2")
    assert result.plan.bypassed == ("blocks.2",)
    assert result.plan.removed == {}
    expected = deep()
    expected.blocks[2] = nn.Identity()
    torch.testing.assert_close(result.model(BATCHES[0]), expected(BATCHES[0]))
    report = result.report
    assert report.before.macs - report.after.macs == BLOCK_MACS
    gone = [layer for layer in report.layers if layer.name.startswith("blocks.2.")]
    assert sum(layer.macs_before for layer in gone) == BLOCK_MACS
    assert sum(layer.macs_after for layer in report.layers) == report.after.macs
    assert all(layer.macs_after == 0 for layer in gone)
    assert any(note.startswith("Left out: blocks.2. Search") for note in report.notes)


def test_what_remains_answers_for_the_layers_that_are_left_out() -> None:
    """On inputs that nothing was learnt from; the user's own weights stay."""
    torch.manual_seed(1)
    model, fresh = deep(), torch.randn(64, 3, 8, 8)
    learnt = [torch.randn(64, 3, 8, 8) for _ in range(4)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut, repaired = (
        sned.prune(model, X, without=["blocks.1", "blocks.2"], calibration=given).model
        for given in (None, learnt)
    )
    with torch.no_grad():
        lost, left = ((small(fresh) - model(fresh)).square().sum() for small in (cut, repaired))
    assert left < lost / 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_repair_of_what_remains_is_told(tmp_path: Path) -> None:
    """And the units that go then are those that the repaired network needs least."""
    result = sned.prune(
        deep(), X, without="blocks.1", calibration=BATCHES, budget=sned.Budget(macs="60%"), out=tmp_path
    )
    (note,) = [note for note in result.report.notes if note.startswith("Left out")]
    assert "blocks.1. Repair chose 'least squares" in note
    assert "the network without them, repaired towards yours; agreement" in note
    assert "shorten" in result.report.seconds


def test_a_budget_counts_the_layers_that_are_left_out(tmp_path: Path) -> None:
    """Half of the whole network, not of what is left."""
    result = sned.prune(
        deep(),
        X,
        without=["blocks.1", "blocks.2"],
        calibration=BATCHES,
        budget=sned.Budget(macs="50%"),
        out=tmp_path,
    )
    assert 0.4 <= result.report.after.macs / result.report.before.macs <= 0.5
    assert sum(len(units) for units in result.plan.removed.values()) <= 3, "most went with the layers"
    again = sned.load(deep(), tmp_path / "model.safetensors")
    torch.testing.assert_close(again(BATCHES[0]), result.model(BATCHES[0]))


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(PlanError, match=r"not so 'blocks\.7'\. Did you mean 'blocks\."):
        sned.prune(deep(), X, without=["blocks.7"])


# --- budgets ---------------------------------------------------------------------------------------------------------
