"""Layers that are chosen to be left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sned
from sned.errors import BudgetError, CalibrationError
from tests.pipeline.networks import X
from tests.pipeline.test_layers import Deep


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(64, 3, 8, 8) for _ in range(3)]


def network(idle: tuple[int, ...], narrow: bool) -> nn.Module:
    """Blocks of which some add next to nothing, or all need half of their inner channels alone."""
    torch.manual_seed(0)
    model = Deep().eval()
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            block.b.weight *= 1e-3 if number in idle else 2.0
            block.b.bias *= number not in idle
            if narrow:
                block.b.weight[:, 4:] *= 1e-3
    return model


def distance(model: nn.Module, small: nn.Module) -> float:
    fresh = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((small(fresh) - model(fresh)).square().sum() / model(fresh).square().sum())


def test_layers_that_add_nothing_go_before_units_that_do() -> None:
    model, learnt = network(idle=(1, 2), narrow=False), inputs()
    budget = sned.Budget(macs="55%")
    result = sned.prune(model, X, budget=budget, calibration=learnt, without="auto")
    assert result.plan.bypassed
    assert {name[: len("blocks.0")] for name in result.plan.bypassed} <= {"blocks.1", "blocks.2"}
    assert result.report.after.macs <= 0.55 * result.report.before.macs
    units_alone = sned.prune(model, X, budget=budget, calibration=learnt)
    assert distance(model, result.model) < distance(model, units_alone.model) / 2
    (note,) = [note for note in result.report.notes if note.startswith("Layers to leave out were chosen by")]
    assert "yours: with all " in note
    assert "; without blocks." in note
    torch.testing.assert_close(sned.apply(model, result.plan)(X).shape, model(X).shape)


def test_layers_stay_where_units_are_idle() -> None:
    model = network(idle=(), narrow=True)
    result = sned.prune(model, X, budget=sned.Budget(macs="60%"), calibration=inputs(), without=["auto"])
    assert result.plan.bypassed == ()
    assert result.plan.removed


def test_there_must_be_something_to_choose_by() -> None:
    model = network(idle=(), narrow=False)
    for budget in (None, sned.Budget(sparsity=0.5), sned.Budget(macs="50%", max_loss=0.1)):
        with pytest.raises(BudgetError, match=r"`without='auto'` shares out .* budget with a cost"):
            sned.prune(model, X, budget=budget, calibration=inputs(), without="auto", evaluate=lambda _: 0.0)
    with pytest.raises(CalibrationError, match=r"`without='auto'` compares the answers of repaired networks"):
        sned.prune(model, X, budget=sned.Budget(macs="50%"), without="auto")
