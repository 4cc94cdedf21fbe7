import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from sned.errors import WriteError
from sned.files import atomic_path, atomic_write_text, check_place, check_writable, size_of, staged_path

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


def test_what_a_link_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "plan.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    atomic_write_text(link, "new")
    with staged_path(link) as staged:
        staged.write_text("newer")
    assert link.is_symlink()
    assert target.read_text() == "newer"
    assert list((tmp_path / "real").iterdir()) == [target]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for writer in (atomic_path, staged_path):
        with pytest.raises(WriteError, match="no file but a device, a pipe or a socket"), writer(pipe):
            pass
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_place_is_a_path() -> None:
    with (
        pytest.raises(WriteError, match="written to a path, got an object of type NoneType"),
        atomic_path(None),
    ):  # type: ignore[arg-type]
        pass


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "×\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\x97\n"


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


def test_whether_a_file_can_be_written_is_found_out_by_trying(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "plan.json"
    check_writable(target)
    assert list(target.parent.iterdir()) == []
    target.write_text("old")
    check_writable(target)
    assert target.read_text() == "old"
    with pytest.raises(WriteError, match="a folder stands at that place"):
        check_writable(target.parent)
    with pytest.raises(WriteError, match="a file stands where one of its folders should be"):
        check_writable(target / "plan.json")


def test_a_full_disk_is_found_out_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.files._free_bytes", lambda path: 0)
    with pytest.raises(WriteError, match="the disk is full"):
        check_writable(tmp_path / "plan.json")


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"larger than the disk, or a limit of this process, allows"), \
            atomic_path(tmp_path / "x") as beside:  # fmt: skip
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(beside))


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "x"):
        (tmp_path / "elsewhere").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        pass


def test_what_belongs_together_arrives_together(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.xml"
    with staged_path(target) as staged:
        staged.write_text("graph")
        staged.with_suffix(".bin").write_bytes(b"weights")
        assert staged.name == "model.xml"
        assert not target.exists()
    assert sorted(path.name for path in target.parent.iterdir()) == ["model.bin", "model.xml"]
    assert size_of(target.parent) == len("graph") + len("weights")


def test_a_package_replaces_the_one_that_stood_there(tmp_path: Path) -> None:
    target = tmp_path / "model.mlpackage"
    for text in ("old", "new"):
        with staged_path(target) as staged:
            staged.mkdir()
            (staged / text).write_text(text)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_the_old_package_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    target = tmp_path / "model.mlpackage"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(failure), staged_path(target) as staged:
        staged.mkdir()
        raise failure
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_stays_a_file_and_a_package_a_package(tmp_path: Path) -> None:
    file, package = tmp_path / "file", tmp_path / "package"
    file.write_text("old")
    package.mkdir()
    with pytest.raises(WriteError, match="a file stands at that place, where a folder is to be"), \
            staged_path(file) as staged:  # fmt: skip
        staged.mkdir()
    with pytest.raises(WriteError, match="a folder stands at that place"), staged_path(package) as staged:
        staged.write_text("new")
    assert file.read_text() == "old"
    assert package.is_dir()


def test_a_place_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for fine, folder in (("new/model.onnx", False), ("file", False), ("new/folder", True), (".", True)):
        check_place(tmp_path / fine, folder=folder)
    for taken, folder, reason in (
        ("file", True, "a file stands at that place, where a folder is to be"),
        (".", False, "a folder stands at that place"),
        ("file/model.onnx", False, "a file stands where one of its folders should be"),
        ("file/new/folder", True, "a file stands where one of its folders should be"),
    ):
        with pytest.raises(WriteError, match=rf"Could not write '.*': {reason}"):
            check_place(tmp_path / taken, folder=folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
