"""`sned.prune(..., finetune=...)`: one call to the report, with the accuracy at every stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.errors import UserError
from sned.pipeline import road
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
    assert not list(tmp_path.rglob("checkpoint.pt"))


def once(folder: Path, seed: int, labels: int = 0) -> nn.Module:
    """A network pruned, repaired and trained into a folder."""
    x, y = digits(0, 256)
    asked = {"data": (x, y.roll(labels)), "epochs": 2, "batch_size": 32, "learning_rate": 0.05}
    made: nn.Module = sned.prune(
        digit_net(seed).eval(),
        x[:2],
        budget=sned.Budget(sparsity=0.5, device="pixel-9"),
        saliency="random",
        calibration=[x],
        finetune=asked,
        out=folder,
    ).model
    return made


def test_a_second_run_into_a_folder_trains_its_own_network(tmp_path: Path) -> None:
    once(tmp_path / "shared", 0)
    assert same(once(tmp_path / "shared", 5, labels=1), once(tmp_path / "alone", 5, labels=1))


def test_training_that_was_interrupted_goes_on_from_the_same_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(road, "export_onnx", stop)  # what comes next after training
        with pytest.raises(KeyboardInterrupt):
            once(tmp_path / "shared", 0)
    shutil.copytree(tmp_path / "shared", tmp_path / "again")
    assert same(once(tmp_path / "again", 5), once(tmp_path / "alone", 5))
    # Training was done, so that other labels change nothing.
    assert same(once(tmp_path / "shared", 0, labels=3), once(tmp_path / "first", 0))


def test_data_to_train_on_are_asked_for_at_once() -> None:
    with pytest.raises(UserError, match="`data` at least"):
        sned.prune(digit_net(), digits()[0][:2], budget=sned.Budget(sparsity=0.5), finetune={"epochs": 3})
