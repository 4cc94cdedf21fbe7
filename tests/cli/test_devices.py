"""`sned devices`: calibrations that were made elsewhere, and how one that is being made ends."""

from pathlib import Path

import pytest

from sned.devices import Device, find_device, read_device
from sned.devices.calibration import find_calibration, save_calibration
from sned.devices.probe import environment
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
