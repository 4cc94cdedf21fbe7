"""`sned.prune(..., finetune=...)`: one call to the report, with the accuracy at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.errors import UserError
from sned.report import from_json, to_json
from tests.training.networks import accuracy, digit_net, digits, same

pytest.importorskip("accelerate")


def test_one_call_prunes_repairs_trains_and_reports(tmp_path: Path) -> None:
    (x, y), validation = digits(0, 1000), digits(1000, 1300)
    dense = sned.finetune(digit_net(), (x, y), epochs=5, batch_size=32, learning_rate=0.1).model.eval()
    seen: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        seen.append(model)
        return accuracy(model, *validation)

    result = sned.prune(
        dense,
        x[:2],
        budget=sned.Budget(macs="35%"),
        calibration=list(torch.split(x[:256], 64)),
        evaluate=evaluate,
        finetune={"data": (x, y), "validation": 0.1, "epochs": 5, "batch_size": 32, "learning_rate": 0.05},
        out=tmp_path,
    )
    stages = result.report.stages
    assert list(stages) == ["before", "as cut", "after repair", "after training"]
    assert stages["before"] == result.report.before.accuracy == accuracy(dense, *validation)
    assert stages["after training"] == result.report.after.accuracy == accuracy(result.model, *validation)
    assert stages["as cut"] < stages["after repair"] < stages["after training"]
    assert any("as cut" in note and "after training" in note for note in result.report.notes)
    assert any("5 of 5 epochs" in note for note in result.report.notes)
    assert from_json(to_json(result.report)) == result.report
    assert same(sned.load(digit_net(), tmp_path / "model.safetensors"), result.model)
    assert (tmp_path / "training" / "checkpoint.pt").is_file()


def test_data_to_train_on_are_asked_for_at_once() -> None:
    with pytest.raises(UserError, match="`data` at least"):
        sned.prune(digit_net(), digits()[0][:2], budget=sned.Budget(sparsity=0.5), finetune={"epochs": 3})
