"""`sned prune` on a user's own file, and what bad input gets."""

import errno
import hashlib
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sned.cli.inputs import load_model
from sned.cli.prune import _budget, _expanded, command
from sned.devices import Budget
from sned.errors import BudgetError
from sned.graph import Plan
from sned.report import from_json
from tests.cli.conftest import USER_FILE, Shell

KEPT = {"dense.onnx", "model.onnx", "model.safetensors", "plan.json", "report.html", "report.json"}


RULES = 'protect = ["more.0"]\nsparsity = {"features.0" = 0.5}\n'


def test_rules_alone_from_a_file(shell: Shell, user_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES, encoding="utf-8")
    ended = shell(
        "prune", f"{user_file}:make_model", "-e", "1,3,8,8", "--rules", tmp_path / "rules.toml",
        "--saliency", "synflow", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = from_json(ended.out)
    assert [(group.before, group.after) for group in report.groups] == [(8, 4), (8, 8)]
    notes = " ".join(report.notes)
    assert "ranked by 'synflow', as asked." in notes
    assert "chosen by 'manual', rules alone say how much goes" in notes


def test_a_layer_is_left_out(shell: Shell, user_file: Path) -> None:
    ended = shell("prune", f"{user_file}:make_model", "-e", "1,3,8,8", "--without", "more", "--json")
    assert ended.code == 0, ended.err
    report = from_json(ended.out)
    assert [(group.name, group.before, group.after) for group in report.groups] == [("features.0", 8, 8)]
    assert report.before.parameters - report.after.parameters == 8 * 8 * 9 + 8 + 2 * 8
    assert any("Left out: more." in note for note in report.notes)


def test_every_field_of_a_budget_is_a_flag() -> None:
    flags = inspect.signature(command).parameters
    assert set(Budget.model_fields) <= set(flags)


@pytest.mark.parametrize(
    ("text", "value"),
    [("40M", 40e6), ("1.5g", 1.5e9), ("300kB", 300e3), ("67%", "67%"), ("2x", "2x"), ("2", "2")],
)
def test_amounts_may_be_short(text: str, value: object) -> None:
    assert _expanded(text) == value


@pytest.mark.parametrize("name", ["latency_ms", "energy_mj"])
def test_millions_are_no_milliseconds(name: str) -> None:
    with pytest.raises(BudgetError, match=f"`{name}` must be a number above 0.*got '5m'"):
        _budget(**{name: "5m"})
    assert _budget(macs="5m").macs == 5e6


def test_prune_writes_everything_and_shows_the_table(shell: Shell, user_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = shell(
        "prune", f"{user_file}:make_model", "--example", "1,3,8,8", "--calibration", f"{user_file}:batches",
        "--evaluate", f"{user_file}:accuracy", "--macs", "60%", "--out", out,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert {file.name for file in out.iterdir()} == KEPT
    assert re.search(r"MACs .* ×0\.[0-5]\d", ended.out)
    assert "✓ MACs at most" in ended.out
    assert "report.html" in ended.err
    report = from_json((out / "report.json").read_text())
    assert report.after.accuracy == 0.75
    plan = Plan.from_json((out / "plan.json").read_text())
    small = load_model(f"{user_file}:make_model", out / "model.safetensors").eval()
    lost = sum(len(units) for units in plan.removed.values())
    assert sum(layer.out_channels for layer in (small.features[0], small.more[0])) == 16 - lost
    x = torch.randn(2, 3, 8, 8)
    [session_output] = _run(out / "model.onnx", x)
    torch.testing.assert_close(torch.from_numpy(session_output), small(x).detach(), atol=1e-5, rtol=1e-4)
    again = shell("measure", out / "dense.onnx", out / "model.onnx", "--runs", "5", "--json")
    assert list(json.loads(again.out)["files"]) == ["dense.onnx", "model.onnx"]


def test_a_sparsity_as_json_without_a_folder(shell: Shell, user_file: Path) -> None:
    ended = shell("prune", f"{user_file}:make_model", "-e", "1,3,8,8", "--sparsity", "0.5", "--json")
    assert ended.code == 0, ended.err
    report = from_json(ended.out)
    assert [(group.before, group.after) for group in report.groups] == [(8, 4), (8, 4)]
    assert "Nothing was written. Give --out DIR" in ended.err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("{f}:make_model", "-e", "1,4,8,8", "--macs", "50%"), r"must run on the example inputs"),
        (("{f}:make_model", "-e", "1,3,8,8"), r"`--macs 50%`"),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "half"), r"`macs` must be a number above 0"),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "150%"), r"not between 0% and 100%"),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "--sparsity", "0.5"), r"Give one or the other"),
        (("{f}:make_model", "-e", "1,3,8,8", "--sparsity", "1.5"), r"`sparsity` must be in \[0, 1\)"),
        (
            (
                "{f}:make_model",
                "-e",
                "1,3,8,8",
                "--macs",
                "50%",
                "--device",
                "pixel-9",
                "--runtime",
                "coreml",
            ),
            r"`runtime` must be one that 'pixel-9' has \(onnxruntime, litert, executorch\), got 'coreml'",
        ),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--max-loss", "0.1"),
            r"`--max-loss` needs `--evaluate FILE:NAME`",
        ),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "1.2.3M"), r"`macs` must be a number above 0"),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "--search", "knapsak"),
            r"Did you mean 'knapsack'",
        ),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "--saliency", "tailor"),
            r"Did you mean 'taylor'",
        ),
        (("{f}:make_model", "-e", "1,3,8,8", "--rules", "absent.toml"), r"'absent\.toml', does not exist"),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "-c", "{f}:failing"),
            r"`calibration` failed with OSError at batch 1: disk gone",
        ),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "10"), r"(?i)smallest|least|lowest"),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "--device", "hots"), r"Did you mean 'host'\?"),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "--runtime", "tflite"), r"`runtime` must be"),
        (("absent.py:make", "-e", "1,3,8,8", "--macs", "50%"), r"There is no file 'absent\.py'"),
        (("{f}:make_mdoel", "-e", "1,3,8,8", "--macs", "50%"), r"Did you mean 'make_model'"),
        (("{f}:make_nan_model", "-e", "1,3,8,8", "--macs", "50%"), r"'more\.0\.weight' holds NaN"),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "-c", "{f}:nothing"),
            r"(?i)calibration.*(empty|no batch|at least one)",
        ),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "-c", "{f}:labelled"), r"(?i)label"),
        (("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "-c", "{f}:number"), r"must give batches"),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "--evaluate", "{f}:number"),
            r"must be a function",
        ),
        (
            ("{f}:make_model", "-e", "1,3,8,8", "--macs", "50%", "-w", "absent.pt"),
            r"There is no file 'absent\.pt'",
        ),
    ],
    ids=lambda value: " ".join(value[3:]) if isinstance(value, tuple) else "",
)
def test_what_the_user_can_put_right_is_one_paragraph_and_code_2(
    shell: Shell, user_file: Path, tmp_path: Path, words: tuple[str, ...], match: str
) -> None:
    out = tmp_path / "out"
    ended = shell("prune", *(word.format(f=user_file) for word in words), "--out", out)
    assert ended.code == 2, ended.err
    assert re.search(match, ended.err), ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert not list(out.glob(".*")) if out.exists() else True


def test_a_full_disk_leaves_nothing_half_written(
    shell: Shell, user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("sned.files._flush_to_disk", full)
    out = tmp_path / "out"
    ended = shell("prune", f"{user_file}:make_model", "-e", "1,3,8,8", "--sparsity", "0.5", "--out", out)
    assert ended.code == 2
    assert re.search(r"Could not write '.*dense\.onnx': the disk is full\. Free some space", ended.err)
    assert list(out.iterdir()) == []


def test_ctrl_c_before_there_is_a_plan_leaves_nothing(
    shell: Shell, user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sned.pipeline.choice.search", interrupted)
    out = tmp_path / "out"
    ended = shell("prune", f"{user_file}:make_model", "-e", "1,3,8,8", "--sparsity", "0.5", "--out", out)
    assert ended.code == 130
    assert "Stopped. Nothing was written, and the model is as it was." in ended.err
    assert list(out.iterdir()) == []


def test_a_stopped_run_goes_on_from_there(
    shell: Shell, user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sned.calibration.resume.INTERVAL", 0.0)
    words = (
        "prune", f"{user_file}:make_model", "-e", "1,3,8,8", "-c", f"{user_file}:batches", "--macs", "50%",
    )  # fmt: skip
    assert shell(*words, "--out", tmp_path / "whole").code == 0
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("sned.pipeline.making.repair", interrupted)
        ended = shell(*words, "--out", out)
    assert ended.code == 130
    assert "each of them whole: dense.onnx, plan.json. What was learnt is kept in" in ended.err
    assert "out/.resume': the same command goes on from there. The model is as it was." in ended.err
    ended = shell(*words, "--out", out)
    assert ended.code == 0, ended.err
    assert "calibrating, resumed" in ended.err
    notes = from_json((out / "report.json").read_text()).notes
    assert any(
        note.startswith("Resumed what an interrupted run had done: calibration (all 32)") for note in notes
    )
    assert {file.name for file in out.iterdir()} == KEPT
    assert (out / "plan.json").read_text() == (tmp_path / "whole/plan.json").read_text()
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_the_input_model_is_untouched(tmp_path: Path) -> None:
    from sned.pipeline import prune

    (tmp_path / "own.py").write_text(USER_FILE, encoding="utf-8")
    model = load_model(f"{tmp_path}/own.py:make_model").train()
    before = _digest(model)
    result = prune(model, torch.randn(1, 3, 8, 8), budget=Budget(sparsity=0.5))
    assert _digest(model) == before
    assert model.training
    assert type(result.model) is type(model)
    with pytest.raises(Exception, match="NaN"):
        prune(_with_nan(model), torch.randn(1, 3, 8, 8), budget=Budget(sparsity=0.5))


def _with_nan(model: torch.nn.Module) -> torch.nn.Module:
    torch.nn.init.constant_(model.head.weight, float("nan"))
    return model


def _digest(model: torch.nn.Module) -> str:
    state = model.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def _run(path: Path, x: torch.Tensor) -> list:
    from sned.runtime import open_session

    return open_session(path).run(None, {"x": x.numpy()})
