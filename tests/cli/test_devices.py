"""`sned devices`, and what `sned inspect` says of a device: where figures come from, and what it cannot hold."""

import json
import re
from pathlib import Path

import pytest

from sned.devices import Device, find_device, read_device
from sned.devices.calibration import Calibration, find_calibration, read_calibration, save_calibration
from sned.devices.probe import environment
from sned.devices.store import Store
from sned.errors import WriteError
from tests.cli.conftest import Shell
from tests.devices.calibrations import made_up

BOARD = """
name = "my-board"
title = "My board"
kind = "board"
runtimes = ["onnxruntime"]
memory_bandwidth_gb_s = 17.0
idle_power_w = 1.0
measured = ["memory_bandwidth_gb_s"]
clusters = [{ count = 4, name = "Cortex-A76", clock_ghz = 2.2, simd_bits = 128, fma_units = 2 }]

[sources]
clusters = "data sheet"
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "my-board.toml"
    path.write_text(BOARD, encoding="utf-8")
    return path


def written(path: Path, device: Device, **changes: object) -> Path:
    path.write_text(made_up(device, count=60, **changes).model_dump_json(exclude_none=True), encoding="utf-8")
    return path


def test_a_calibration_of_a_profile_of_ones_own_is_read_in(
    shell: Shell, board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    device = read_device(board)
    ended = shell("devices", "calibrate", board, "--from", written(tmp_path / "a.json", device))
    assert ended.code == 0, ended.err
    kept = find_calibration("my-board", "onnxruntime", 1)
    assert kept is not None
    assert kept.device == "my-board"


def test_what_a_computer_says_of_itself_is_of_the_device_that_is_named(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    host = find_device("host")
    ours = made_up(host, count=60, processor=environment(1).processor)
    save_calibration(ours)
    file = written(tmp_path / "there.json", host, processor="Another CPU 9000")
    assert shell("devices", "calibrate", "laptop-i5-1135g7", "--from", file).code == 0
    assert find_calibration("laptop-i5-1135g7", "onnxruntime", 1) is not None
    refused = shell("devices", "calibrate", "host", "--from", file)
    assert refused.code == 2
    assert "of another (Another CPU 9000)" in refused.err
    assert find_calibration("host", "onnxruntime", 1) == ours


def test_what_a_calibration_is_refused_for(shell: Shell, tmp_path: Path) -> None:
    file = written(tmp_path / "phone.json", find_device("pixel-9"))
    for words, said in (
        (
            ("phones-2026", "--from", file),
            "A calibration is of one device, got 'phones-2026', which is several",
        ),
        (("pixel-9", "--from", file, "--threads", 4), "is of 1, and --threads 4 was asked for. Leave it out"),
        (("pixel-9", "--from", file, "--again"), "with `--from` nothing is timed. Leave one out"),
        (("host", "--out", tmp_path), "a folder stands at that place. Choose another name"),
    ):
        ended = shell("devices", "calibrate", *words)
        assert ended.code in (1, 2)
        assert said in ended.err


def test_ctrl_c_says_that_times_are_kept(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sned.devices.calibrate.calibrate_host", stopped)
    ended = shell("devices", "calibrate", "host")
    assert ended.code == 130
    assert "Stopped. What was timed is kept, and the same command goes on from there." in ended.err


def test_nothing_is_timed_that_cannot_be_kept(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sned.devices.calibrate.calibrate_host", lambda **_: pytest.fail("it was timed"))
    refused = shell("devices", "calibrate", "host", "--out", tmp_path)
    assert "a folder stands at that place" in refused.err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused = shell("devices", "calibrate", "host")
    assert refused.code == 2
    assert "a file stands where one of its folders should be" in refused.err


def test_a_calibration_is_written_where_it_was_asked_for_even_if_the_cache_is_full(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = read_calibration(written(tmp_path / "made.json", find_device("host")))

    def full(_: Calibration) -> None:
        raise WriteError("the disk is full")

    monkeypatch.setattr("sned.devices.calibrate.calibrate_host", lambda **_: made)
    monkeypatch.setattr("sned.devices.calibration.save_calibration", full)
    refused = shell("devices", "calibrate", "host", "--out", tmp_path / "out.json")
    assert refused.code == 2
    assert read_calibration(tmp_path / "out.json") == made


@pytest.mark.parametrize(("busy", "told"), [(0.05, False), (0.4, True)])
def test_a_busy_machine_is_told_and_can_be_timed_again(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, told: bool
) -> None:
    host = find_device("host")
    made = read_calibration(written(tmp_path / "made.json", host)).model_copy(update={"busy": busy})
    known: list[int] = []

    def calibrated(*, store: Store, **_: object) -> Calibration:
        known.append(len(store.yardsticks))
        store.yardsticks["op"] = 1.0
        store.save()
        return made

    monkeypatch.setattr("sned.devices.calibrate.calibrate_host", calibrated)
    for words in ((), (), ("--again",)):
        ended = shell("devices", "calibrate", "host", *words)
        said = " ".join(ended.out.split())
        assert (
            "something else 40 % of the time, which makes predictions worse: run it with --again" in said
        ) == told
    assert known[1] > known[2] == 0


DEEP = """
import torch
from torch import nn


def deep():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(30)))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(48, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).reshape(-1))
"""


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(DEEP, encoding="utf-8")
    return path


def test_what_was_measured_is_shown_as_measured(shell: Shell, board: Path) -> None:
    shown = shell("devices", "show", board).out
    assert re.search(r"memory_bandwidth_gb_s +│ 17\.0 +│ measured", shown)
    assert re.search(r"clusters +│ .* │ published │ data sheet", shown)
    assert re.search(r"idle_power_w +│ 1\.0 +│ +│", shown)


def test_inspect_says_how_many_steps_it_does_not_show(shell: Shell, networks: Path) -> None:
    words = ("inspect", f"{networks}:deep", "-e", "1,3,8,8", "--device", "pixel-9")
    steps = len(json.loads(shell(*words, "--json").out)["bounds"])
    assert f"The 25 longest of {steps} steps; --report FILE.html and --json have all." in " ".join(
        shell(*words).out.split()
    )


def test_inspect_says_what_a_board_cannot_hold(shell: Shell, user_file: Path) -> None:
    words = ("inspect", f"{user_file}:make_model", "-e", "1,3,200,200")
    board = ("--device", "nano-33-ble", "--runtime", "litert-micro")
    said = (
        r"peak_memory_bytes is [\d,]+, and the RAM of 'nano-33-ble' holds 262,144: the network does not run"
    )
    assert re.search(said, " ".join(shell(*words, *board).out.split()))
    [note] = json.loads(shell(*words, *board, "--json").out)["notes"]
    assert re.match(said, note)


def test_inspect_says_at_which_batch_a_network_runs(shell: Shell, networks: Path) -> None:
    told = shell("inspect", f"{networks}:Fixed", "-e", "3,8", "--device", "pixel-9")
    assert "on pixel-9, batch 3:" in " ".join(told.out.split())


def test_inspect_takes_the_calibration_of_this_machine_where_that_is_asked_for(
    shell: Shell, user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is timed then, and what the calibration cannot tell is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_calibration(made_up(find_device("host"), count=60, processor=environment(1).processor))

    def timed(*_: object, **__: object) -> None:
        raise AssertionError("an op was timed")

    monkeypatch.setattr("sned.devices.model.measure", timed)
    words = ("inspect", f"{user_file}:make_model", "-e", "1,3,8,8", "--basis")
    told = json.loads(shell(*words, "calibrated", "--json").out)
    assert told["basis"] == "calibrated"
    assert any("made with onnxruntime 1.0.0" in note for note in told["notes"])
    assert any("has too few samples of" in note for note in told["notes"])
    assert "made with onnxruntime 1.0.0" in " ".join(shell(*words, "calibrated").out.split())
    refused = shell(*words, "guessed")
    assert refused.code == 2
    assert "`basis` must be one of measured, calibrated, estimated, got 'guessed'" in refused.err
