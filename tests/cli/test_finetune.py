"""`sned finetune` on a user's own file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import sned
from sned.cli.inputs import load_model
from tests.cli.conftest import Shell

pytest.importorskip("accelerate")

DATA = """

def train():
    torch.manual_seed(2)
    inputs = torch.randn(160, 3, 8, 8)
    return inputs, (inputs.mean((2, 3)) @ torch.randn(3, 4)).argmax(1)


def margin(outputs, targets):
    return nn.functional.multi_margin_loss(outputs, targets)


def hits(outputs, targets):
    return float((outputs.argmax(1) == targets).float().mean())


calls = []


def ruined_in_the_second_epoch(outputs, targets):
    calls.append(1)
    return nn.functional.cross_entropy(outputs, targets) * (1 if len(calls) < 6 else float("nan"))


def adam(groups):
    return torch.optim.Adam(groups, 0.01)


def halved(done):
    return 0.5

"""


@pytest.fixture
def own(user_file: Path) -> Path:
    user_file.write_text(user_file.read_text(encoding="utf-8") + DATA, encoding="utf-8")
    return user_file


def test_a_pruned_file_is_trained_with_the_dense_one_as_teacher(
    shell: Shell, own: Path, tmp_path: Path
) -> None:
    dense = load_model(f"{own}:make_model")
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    x = torch.randn(2, 3, 8, 8)
    small = sned.apply(dense, sned.plan(sned.trace(dense, x), sparsity=0.5))
    sned.save(small, tmp_path / "small.safetensors")
    ended = shell(
        "finetune", f"{own}:make_model", "-w", tmp_path / "small.safetensors", "-d", f"{own}:train",
        "--validation", "0.2", "--teacher-weights", tmp_path / "dense.pt", "--features", "1", "--epochs", "3",
        "--batch-size", "32", "--folder", tmp_path / "run", "--log", tmp_path / "log.csv",
        "--out", tmp_path / "tuned.safetensors", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert [epoch["epoch"] for epoch in told["epochs"]] == [1, 2, 3]
    assert {"loss/labels", "loss/logits", "loss/features"} <= set(told["epochs"][0])
    assert "accuracy on validation data" in ended.err
    assert (tmp_path / "log.csv").is_file()
    tuned = sned.load(load_model(f"{own}:make_model"), tmp_path / "tuned.safetensors")
    assert tuned.features[0].out_channels == 4
    assert not torch.equal(tuned.head.weight, small.head.weight)


def test_a_dense_model_with_a_loss_and_a_metric_of_ones_own(shell: Shell, own: Path, tmp_path: Path) -> None:
    ended = shell(
        "finetune", f"{own}:make_model", "-d", f"{own}:train", "--validation", f"{own}:train", "--epochs", "2",
        "--loss", f"{own}:margin", "--metric", f"{own}:hits", "--out", tmp_path / "tuned.safetensors",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert re.search(r"epoch .* loss .* hits .* inputs/s", ended.out)
    assert "2 of 2 epochs" in ended.err
    tuned = load_model(f"{own}:make_model", tmp_path / "tuned.safetensors")
    assert not torch.equal(tuned.head.weight, load_model(f"{own}:make_model").head.weight)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("-d", "{f}:nothing"), r"hold no batch at all"),
        (("-d", "{f}:trian"), r"Did you mean 'train'"),
        (("-d", "{f}:number"), r"got int"),
        (("-d", "{f}:train", "--epochs", "0"), r"`epochs` must be a whole number of at least 1"),
        (("-d", "{f}:train", "--task", "sorting"), r"No task is called 'sorting'"),
        (("-d", "{f}:train", "--validation", "tenth"), r"`--validation` is a share such as 0.1"),
        (("-d", "{f}:train", "--validation", "2"), r"must be in \(0, 1\)"),
        (("-d", "{f}:train", "--out", "tuned.pt"), r"`--out` must be a file that ends in \.safetensors"),
        (("-d", "{f}:train", "--set", "warmup"), r"`--set` takes FIELD=VALUE"),
        (
            ("-d", "{f}:train", "--set", "clip=much"),
            r"`clip` must be a finite number of at least 0, got 'much'",
        ),
        (("-d", "{f}:train", "--set", "wamup=0.1"), r"no field 'wamup'. Did you mean 'warmup'"),
        (("-d", "{f}:train", "--features", "1"), r"needs a `teacher`"),
        (("-d", "{f}:train", "--patience", "1"), r"`patience` goes by validation data"),
        (("-d", "{f}:train", "-w", "absent.pt"), r"There is no file 'absent\.pt'"),
    ],
)
def test_what_the_user_can_put_right(shell: Shell, own: Path, words: tuple[str, ...], match: str) -> None:
    ended = shell("finetune", f"{own}:make_model", *(word.format(f=own) for word in words))
    assert ended.code == 2, ended.err
    assert re.search(match, ended.err), ended.err
    assert "Traceback" not in ended.err


def test_a_loss_that_becomes_nan_is_code_1(shell: Shell, own: Path, tmp_path: Path) -> None:
    ended = shell(
        "finetune",
        f"{own}:make_nan_model",
        "-d",
        f"{own}:train",
        "--epochs",
        "1",
        "--out",
        tmp_path / "out.safetensors",
    )
    assert ended.code == 1
    assert "became NaN or infinite" in ended.err
    assert not (tmp_path / "out.safetensors").exists()


def test_what_was_reached_before_training_failed_is_written(shell: Shell, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    ended = shell(
        "finetune", f"{own}:make_model", "-d", f"{own}:train", "--validation", "0.2", "--epochs", "2", "-o", out,
        "--loss", f"{own}:ruined_in_the_second_epoch", "--batch-size", "32",
    )  # fmt: skip
    assert ended.code == 1
    assert "became NaN or infinite" in ended.err
    assert re.search(
        r"What was reached before training failed is in .*Trained for 1 of 2 epochs", ended.err, re.S
    )
    assert all(
        bool(value.isfinite().all()) for value in load_model(f"{own}:make_model", out).state_dict().values()
    )


def test_any_field_of_a_recipe_and_ones_own_optimiser_and_schedule(
    shell: Shell, own: Path, tmp_path: Path
) -> None:
    ended = shell(
        "finetune", f"{own}:make_model", "-d", f"{own}:train", "--epochs", "2", "--batch-size", "32", "--json",
        "--optimiser", f"{own}:adam", "--schedule", f"{own}:halved", "--set", "warmup=0", "--set", "accumulate=2",
        "--set", "steps_per_epoch=4", "--teacher", f"{own}:make_model", "--relations", "1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    epochs = json.loads(ended.out)["epochs"]
    assert [epoch["step"] for epoch in epochs] == [2, 4]
    assert epochs[-1]["learning_rate"] == pytest.approx(0.005)
    assert "loss/relations" in epochs[-1]


def test_a_masked_file_keeps_its_zeros(shell: Shell, own: Path, tmp_path: Path) -> None:
    thin, tuned = tmp_path / "thin.safetensors", tmp_path / "tuned.safetensors"
    ended = shell(
        "sparsify",
        f"{own}:make_model",
        "-e",
        "1,3,8,8",
        "-c",
        f"{own}:batches",
        "--sparsity",
        "0.5",
        "-o",
        thin,
    )
    assert ended.code == 0, ended.err
    given = ("-d", f"{own}:train", "--epochs", "2", "--set", "learning_rate=0.05")
    ended = shell("finetune", f"{own}:make_model", "-w", thin, *given, "-o", tuned)
    assert ended.code == 0, ended.err
    before, after = (sned.load(load_model(f"{own}:make_model"), path) for path in (thin, tuned))
    zeros = 0
    for name, value in before.state_dict().items():
        if value.ndim > 1:
            zeros += int((value == 0).sum())
            assert not bool(after.state_dict()[name][value == 0].any())
            assert not torch.equal(after.state_dict()[name], value)
    assert zeros > 100
