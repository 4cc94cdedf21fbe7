"""`inspect`, `export` and `measure`, on a user's own file."""

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from sned.cli.inputs import load_example, load_model
from sned.export import Exported, export_onnx
from tests.cli.conftest import USER_FILE, Shell


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "my_model.py").write_text(USER_FILE, encoding="utf-8")
    model = load_model(f"{folder}/my_model.py:make_model")
    return export_onnx(model, load_example("1,3,8,8"), folder / "model.onnx")


@pytest.fixture
def exported(result: Exported) -> Path:
    return result.path


def test_export_shows_how_well_the_file_agrees(
    shell: Shell, user_file: Path, result: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = replace(result, notes=("Images enter as [batch, height].",))
    monkeypatch.setattr("sned.export.export", lambda *args, **kwargs: noted)
    ended = shell("export", f"{user_file}:make_model", "-e", "1,3,8,8", "-o", result.path)
    assert re.search(r"batch .* any .*same class .* 100\.0 % of 5", " ".join(ended.out.split()))
    assert "Images enter as [batch, height]." in ended.out


def test_export_writes_a_file_and_tells_of_it_as_json(shell: Shell, user_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    words = ("export", f"{user_file}:make_model", "-e", f"{user_file}:example", "-o", path)
    told = json.loads(shell(*words, "--json").out)
    assert onnx.load(path).graph.input[0].name == "x"
    assert told["size_bytes"] == path.stat().st_size
    assert told["parity"]["max_abs_diff"] < 1e-5
    assert told["dynamic_batch"] is True


def test_a_full_disk_is_told_and_leaves_no_half_written_file(
    shell: Shell, user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("sned.files._flush_to_disk", full)
    before = sorted(tmp_path.iterdir())
    ended = shell("export", f"{user_file}:make_model", "-e", "1,3,8,8", "-o", tmp_path / "model.onnx")
    assert ended.code == 2
    assert re.search(r"Could not write '.*model\.onnx': the disk is full\. Free some space", ended.err)
    assert sorted(tmp_path.iterdir()) == before


def test_measure_compares_files_turn_about(exported: Path, shell: Shell, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(exported.read_bytes())
    ended = shell("measure", exported, other, "--runs", "6", "--json", "--batch", "2")
    told = json.loads(ended.out)
    assert told["inputs"] == {"x": [2, 3, 8, 8]}
    assert {name: file["runs"] for name, file in told["files"].items()} == {"model.onnx": 6, "other.onnx": 6}
    table = shell("measure", exported, "--runs", "5", "--threads", "1", "--shape", "x=3,3,8,8").out
    assert re.search(r"x 3×3×8×8; 1 thread, 5 interleaved runs", table)
    assert "×1.00" in table


def test_measure_tells_what_goes_into_denormal_numbers(
    exported: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(exported.read_bytes())
    shares = {"model.onnx": 0.26, "other.onnx": 0.01}
    monkeypatch.setattr("sned.measure.denormal_share", lambda path, feeds: shares[path.name])
    ended = shell("measure", exported, other, "--runs", "5", "--json")
    told = " ".join(ended.err.split())
    assert "model.onnx spends 26% of its time on numbers too small" in told
    assert "`session.set_denormal_as_zero`" in told
    assert "other.onnx spends" not in told
    assert {name: file["denormal_share"] for name, file in json.loads(ended.out)["files"].items()} == shares


def test_measure_says_where_threads_have_no_cores(
    exported: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.devices.machine.cores", lambda: 1)
    told = {
        threads: " ".join(shell("measure", exported, "--runs", "1", "--threads", threads).err.split())
        for threads in ("1", "2")
    }
    assert "2 threads take turns on 1 core. Give `--threads` 1 at most" in told["2"]
    assert "take turns" not in told["1"]


def test_measure_takes_arrays(exported: Path, shell: Shell, tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    ended = shell("measure", exported, "--inputs", tmp_path / "feeds.npz", "--runs", "5", "--json")
    assert json.loads(ended.out)["inputs"] == {"x": [4, 3, 8, 8]}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--shape", "x:1,2"), r"Give `--shape` as NAME=1,3,32,32, got 'x:1,2'"),
        (("--shape", "y=1,2"), r"has no input 'y'\. Its inputs are 'x'"),
        (("--inputs", "absent.npz"), r"There is no file 'absent\.npz'"),
        (("--inputs", "absent.npz", "--shape", "x=1"), r"Give either `--inputs` or `--shape`"),
    ],
)
def test_measure_refuses_what_it_cannot_feed(
    exported: Path, shell: Shell, words: tuple[str, ...], match: str
) -> None:
    ended = shell("measure", exported, *words)
    assert ended.code == 2
    assert re.search(match, ended.err)


def test_inspect_prints_every_group_and_what_has_to_stay(shell: Shell, user_file: Path) -> None:
    told = json.loads(shell("inspect", f"{user_file}:make_model", "--example", "1,3,8,8", "--json").out)
    assert [(group["name"], group["units"]) for group in told["groups"]] == [("features.0", 8), ("more.0", 8)]
    members = {(part["parameter"], part["axis"]) for part in told["groups"][0]["members"]}
    assert {("features.0.weight", 0), ("features.1.bias", 0), ("more.0.weight", 1)} <= members
    # Cut to one unit of eight, `more` keeps an eighth of the MACs of its convolution and of the head.
    convolutions, head = 64 * 9 * 8 * 3 + 64 * 9 * 8 * 8, 8 * 4
    assert told["dense"]["macs"] == convolutions + head
    assert told["groups"][1]["macs_share"] == pytest.approx(
        7 / 8 * (64 * 9 * 8 * 8 + head) / (convolutions + head)
    )
    assert told["frozen"][0]["name"] == "head"
    assert told["unread"] == []
    assert {"name": "more.0", "parameters": 8 * 8 * 9 + 8, "adds": False} in told["layers"]
    table = shell("inspect", f"{user_file}:make_model", "--example", "1,3,8,8").out
    assert re.search(r"features\.0 .*8 .*features\.0\.weight\[0\], features\.1, more\.0\.weight\[1\]", table)
    assert re.search(r"head .* 4 .*output of the model", table)
    assert re.search(r"more .* 616 .*its input passes", table)


STACKED = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.back = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.back(self.into(x).relu())


def make_model():
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 3)).eval()
"""


def test_inspect_lists_the_blocks_of_a_stack_that_can_go_not_the_stack(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "stacked.py").write_text(STACKED, encoding="utf-8")
    table = shell("inspect", f"{tmp_path}/stacked.py:make_model", "--example", "2,6").out
    offered = re.findall(r"^│ (\S+) +│ +(\d+) │ (.+?) *│$", table, re.MULTILINE)
    assert [row for row in offered if "input" in row[2] or "added" in row[2]] == [
        ("1.0.back", "72", "nothing is added"),
        ("1.0", "144", "its input passes"),
        ("1.1.back", "72", "nothing is added"),
        ("1.1", "144", "its input passes"),
    ]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ("{file}:make_model", "-e", "1,4,8,8"),
            r"must run on the example inputs.*1, 4, 8, 8.*RuntimeError",
        ),
        (("{file}:make_mdoel", "-e", "1,3,8,8"), r"has no 'make_mdoel'\. Did you mean 'make_model'"),
        (("absent.py:make_model", "-e", "1,3,8,8"), r"There is no file 'absent\.py'"),
        (("{file}:make_model", "-e", "8"), r"must run on the example inputs"),
        (
            ("{file}:make_model", "-e", "1,3,8,8", "--device", "hsot"),
            r"no device 'hsot'.*Did you mean 'host'",
        ),
    ],
)
def test_inspect_says_what_is_wrong(
    shell: Shell, user_file: Path, words: tuple[str, ...], match: str
) -> None:
    ended = shell("inspect", *(word.format(file=user_file) for word in words))
    assert ended.code == 2
    assert re.search(match, ended.err), ended.err


def test_sparsify_writes_a_masked_model(shell: Shell, user_file: Path, tmp_path: Path) -> None:
    where, out = f"{user_file}:make_model", tmp_path / "thin.safetensors"
    told = json.loads(
        shell("sparsify", where, "-e", "1,3,8,8", "--sparsity", "0.5", "--out", str(out), "--json").out
    )
    assert told["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert set(told["zeros"]) == {"features.0.weight", "more.0.weight", "head.weight"}
    assert out.exists()
    again = shell("export", where, "-w", str(out), "-e", "1,3,8,8", "--out", str(tmp_path / "thin.onnx"))
    assert again.code == 0
    refused = shell("sparsify", where, "-e", "1,3,8,8", "--pattern", "4:2")
    assert refused.code == 2
    assert "N:M" in refused.err
    refused = shell("sparsify", where, "-e", "1,3,8,8", "--sparsity", "0.5", "--match-seconds", "0")
    assert refused.code == 2
    assert "more than 0 seconds" in refused.err


@pytest.mark.parametrize(
    ("out", "match"),
    [("thin.pt", r"must be a file that ends in \.safetensors, got '.*thin\.pt'"),
     ("folder.safetensors", r"folder\.safetensors': a folder stands at that place")],
)  # fmt: skip
def test_sparsify_refuses_a_place_before_any_work(
    shell: Shell, user_file: Path, tmp_path: Path, out: str, match: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    failing = ("-c", f"{user_file}:failing", "--sparsity", "0.5", "--out", tmp_path / out)
    ended = shell("sparsify", f"{user_file}:make_model", "-e", "1,3,8,8", *failing)
    assert ended.code == 2
    assert re.search(match, ended.err), ended.err
