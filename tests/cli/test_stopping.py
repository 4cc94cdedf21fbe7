import os
import time
from pathlib import Path

import pytest

from sned.cli.stopping import Stopped, keeping, stoppable
from tests.cli.conftest import Shell


def test_ctrl_c_ends_with_130_and_says_that_nothing_was_written(shell: Shell, user_file: Path) -> None:
    ended = shell("inspect", f"{user_file}:stopped", "--example", "1,3,8,8")
    assert ended.code == 130
    assert "Stopped. Nothing was written, and the model is as it was." in ended.err


def test_what_was_finished_before_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("from an earlier run")
    os.utime(old, (time.time() - 3600,) * 2)
    with (
        pytest.raises(
            Stopped, match=r"Kept in '.*', each of them whole: model\.onnx, plan\.json\. The model"
        ),
        keeping(tmp_path),
    ):
        (tmp_path / "plan.json").write_text("{}")
        (tmp_path / "model.onnx").write_text("")
        (tmp_path / ".report.1234.part.html").write_text("half")
        raise KeyboardInterrupt


def test_an_empty_folder_means_that_nothing_was_written(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent", None):
        with pytest.raises(Stopped, match="Nothing was written"), keeping(folder):
            raise KeyboardInterrupt


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other"), keeping(tmp_path):
        raise ValueError("other")


def test_a_stoppable_command_keeps_its_signature() -> None:
    def command(model: str, *, runs: int = 3) -> None:
        """Doc."""

    assert stoppable(command).__wrapped__ is command  # type: ignore[attr-defined]
