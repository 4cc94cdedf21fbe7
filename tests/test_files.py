import errno
import os
import shutil
from pathlib import Path

import pytest

from sned.errors import WriteError
from sned.files import atomic_path, atomic_write_bytes, atomic_write_text

DISK_IS_FULL = Path("/dev/full")


def test_the_file_appears_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "model.onnx"
    with atomic_path(target) as beside:
        beside.write_bytes(b"half")
        assert not target.exists()
        assert beside.parent == target.parent
        assert beside.suffix == ".onnx"
    assert target.read_bytes() == b"half"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    with pytest.raises(failure), atomic_path(target) as beside:
        beside.write_text("new")
        raise failure
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "×\n")
    atomic_write_bytes(tmp_path / "b", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\xc3\x97\n"
    assert (tmp_path / "b").read_bytes() == b"\x00"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    atomic_write_text(tmp_path / "atomic", "")
    with atomic_path(tmp_path / "closed") as beside:
        beside.touch(mode=0o600)
    for name in ("atomic", "closed"):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not DISK_IS_FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    """A real ENOSPC, from a device that is always full."""
    with pytest.raises(WriteError, match=r"disk is full. Free some space.*No half-written"), \
            atomic_path(tmp_path / "m.bin") as beside:  # fmt: skip
        beside.symlink_to(DISK_IS_FULL)
        beside.write_bytes(b"x" * 100)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_behind_a_vague_error_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.save` says "file write failed" and no more."""
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WriteError, match="disk is full"), atomic_path(tmp_path / "m.bin"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="a folder stands at that place"):
        atomic_write_text(tmp_path, "x")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(WriteError, match="a file stands where one of its folders should be"):
        atomic_write_text(tmp_path / "file" / "deeper" / "x", "x")
    with pytest.raises(WriteError, match="a file stands where one of its folders should be"):
        atomic_write_text(tmp_path / "file" / "x", "x")
    assert (tmp_path / "file").read_text() == "old"


def test_no_permission(tmp_path: Path) -> None:
    """Raised by hand: as root every folder is writable."""
    with pytest.raises(WriteError, match=r"permission denied\. Choose a folder"), \
            atomic_path(tmp_path / "x") as beside:  # fmt: skip
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(beside))


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "x"):
        (tmp_path / "elsewhere").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        pass
