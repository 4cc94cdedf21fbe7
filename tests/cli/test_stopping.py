from pathlib import Path

import pytest

from sned.cli.stopping import RESUME, Stopped, keeping, stoppable
from sned.files import atomic_path, atomic_write_text, staged_path
from tests.cli.conftest import Shell


def test_ctrl_c_ends_with_130_and_says_that_nothing_was_written(shell: Shell, user_file: Path) -> None:
    ended = shell("inspect", f"{user_file}:stopped", "--example", "1,3,8,8")
    assert ended.code == 130
    assert "Stopped. Nothing was written, and the model is as it was." in ended.err


def test_what_the_run_has_finished_is_named_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / RESUME).mkdir()
    (tmp_path / RESUME / "of another command.pt").write_text("")
    with (
        pytest.raises(
            Stopped,
            match=r"^Stopped. Kept in '.*', each of them whole: model\.onnx, plan\.json\. The model is as it was\.$",
        ),
        keeping(tmp_path),
    ):
        atomic_write_text(tmp_path / "plan.json", "{}")
        with staged_path(tmp_path / "model.onnx") as staged:
            staged.write_text("")
        (tmp_path / "notes.txt").write_text("the user's own")
        atomic_write_text(tmp_path.parent / "elsewhere.json", "{}")
        with atomic_path(tmp_path / "report.html") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt


def test_what_was_learnt_is_gone_on_from_while_it_is_there(tmp_path: Path) -> None:
    place = tmp_path / RESUME / "moments-1.pt"
    with (
        pytest.raises(Stopped, match=r"^Stopped. What was learnt is kept in '.*resume': the same"),
        keeping(tmp_path),
    ):
        atomic_write_text(place, "")
        raise KeyboardInterrupt
    with pytest.raises(Stopped, match="Nothing was written"), keeping(tmp_path):
        atomic_write_text(place, "")
        place.unlink()
        raise KeyboardInterrupt


def test_an_export_that_is_stopped_does_not_take_other_files_for_its_own(
    shell: Shell, user_file: Path, tmp_path: Path
) -> None:
    words = ("-e", "1,3,8,8", "-o", tmp_path / "model.onnx", "--evaluate", f"{user_file}:stopping")
    ended = shell("export", f"{user_file}:make_model", *words)
    assert ended.code == 130
    assert "Stopped. Nothing was written, and the model is as it was." in ended.err


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
