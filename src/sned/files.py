"""Files that are either whole or not there: written beside their place, then renamed."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sned.errors import WriteError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})
_NOT_A_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST})
_FILE_THERE = "a file stands at that place, where a folder is to be. Choose another name."
_FOLDER_THERE = "a folder stands at that place. Choose another name."
_FILE_ABOVE = "a file stands where one of its folders should be. Choose another folder."
_NEARLY_NOTHING = 64 * 1024
"""Bytes free below which a failed write is put down to a full disk: libraries often hide the errno."""

_LISTS: list[list[Path]] = []
"""Those of the blocks of `noting` that are running."""


def check_place(path: str | Path, *, folder: bool = False) -> None:
    """Find out before any work is done whether a file, or a folder, can come to stand at `path`.

    Raises:
        WriteError: something else stands there, or a file where one of its folders should be.
    """
    final = Path(path)
    above = next(there for there in final.absolute().parents if there.exists())
    reason = None
    if not above.is_dir():
        reason = _FILE_ABOVE
    elif final.exists() and final.is_dir() != folder:
        reason = _FILE_THERE if folder else _FOLDER_THERE
    if reason is not None:
        raise WriteError(f"Could not write '{final}': {reason}")


class _Trial(Exception):
    """Ends an attempt to write."""


def check_writable(path: str | Path) -> None:
    """Find out before any work is done whether a file can be written at `path`; what stands there stays.

    Raises:
        WriteError: it cannot; as `atomic_path` says it.
    """
    with suppress(_Trial), atomic_path(path):
        raise _Trial


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` on success and is removed on any failure.

    Missing parent folders are made. Whatever stood at `path` stays untouched until the new file is whole,
    Ctrl-C included; where that is a link, what it points to is written. The yielded name keeps the suffix, for
    writers that go by it.

    Args:
        path: where the file should end up.

    Raises:
        WriteError: the disk is full, or the place cannot be written to.

    Example:
        with atomic_path("out/model.onnx") as beside:
            beside.write_bytes(data)
    """
    final = _place(path)
    beside = final.with_name(f".{final.stem}.{secrets.token_hex(4)}.part{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
        mode = _probe(beside)
        yield beside
        beside.chmod(mode)  # safetensors makes files that only their owner may read
        _flush_to_disk(beside)
        beside.replace(final)
        _note(final)
    except BaseException as error:
        # The reason first: once the unfinished file is gone, a full disk no longer looks full.
        reason = _write_failure(error, final, beside)
        _remove(beside)
        if reason is None:
            raise
        raise WriteError(f"Could not write '{final}': {reason} No half-written file was left.") from error


@contextmanager
def staged_path(path: str | Path) -> Iterator[Path]:
    """Yield a path of the same name in a passing folder beside `path`, for what is more than one file.

    When the block ends well, all that was written into that folder is renamed to stand beside `path`, `path`
    itself last; on any failure nothing is. `path` may become a folder (a package); one that stands there is
    replaced.

    Args:
        path: where the file or folder should end up.

    Raises:
        WriteError: the disk is full, or the place cannot be written to.

    Example:
        with staged_path("out/model.xml") as staged:
            staged.write_text(graph)
            staged.with_suffix(".bin").write_bytes(weights)
    """
    final = _place(path)
    folder = final.with_name(f".{final.stem}.{secrets.token_hex(4)}.part")
    staged = folder / final.name
    try:
        folder.mkdir(parents=True)
        _probe(staged)
        yield staged
        for file in folder.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        others = sorted(entry for entry in folder.iterdir() if entry != staged)
        for entry in (*others, staged):
            _replace(entry, final.with_name(entry.name), folder)
            _note(final.with_name(entry.name))
    except BaseException as error:
        reason = _write_failure(error, final, staged)
        if reason is None:
            raise
        raise WriteError(f"Could not write '{final}': {reason} No half-written file was left.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def noting() -> Iterator[list[Path]]:
    """Yield a list that grows by every file, or package, that gets its name within the block."""
    written: list[Path] = []
    _LISTS.append(written)
    try:
        yield written
    finally:
        _LISTS.remove(written)


def _note(path: Path) -> None:
    for written in _LISTS:
        written.append(path.absolute())


def _place(path: str | Path) -> Path:
    """Where a file is to stand in the end: behind a link, and never in the place of a device or a pipe.

    Raises:
        WriteError: something other than a file or a folder stands there.
    """
    if not isinstance(path, str | os.PathLike):
        raise WriteError(f"A file is written to a path, got an object of type {type(path).__name__}.")
    final = Path(path)
    if final.is_symlink():
        final = final.resolve()
    if final.exists() and not (final.is_file() or final.is_dir()):
        raise WriteError(
            f"Could not write '{path}': what stands there is no file but a device, a pipe or a socket. "
            "Choose another name."
        )
    return final


def size_of(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all. Raises `WriteError` as `atomic_path` does."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def _write_failure(error: BaseException, final: Path, beside: Path) -> str | None:
    """Why writing failed, or None where `error` is not about writing (Ctrl-C, a failed read)."""
    if not isinstance(error, Exception):
        return None
    code = getattr(error, "errno", None)
    if code in _FULL or "No space left on device" in str(error) or _free_bytes(final) < _NEARLY_NOTHING:
        return "the disk is full. Free some space, or choose another folder, and run it again."
    named = Path(str(getattr(error, "filename", None)))
    passing = set() if beside.parent == final.parent else {beside.parent} & {named, *named.parents}
    if named not in {final, beside, *final.parents} and not passing:
        return None
    if code == errno.ENOTDIR and final.is_file():
        return _FILE_THERE
    if code == errno.EISDIR:
        return _FOLDER_THERE
    if code in _NOT_A_FOLDER:
        return _FILE_ABOVE
    if code == errno.EFBIG:
        return "the file is larger than the disk, or a limit of this process, allows. Choose another folder."
    if code in _UNWRITABLE:
        return f"{os.strerror(code).lower()}. Choose a folder that you may write to."
    return None


def _replace(entry: Path, final: Path, passing: Path) -> None:
    """Rename over what stands there; a folder only over a folder, and a file only over a file."""
    if final.exists() and final.is_dir() != entry.is_dir():
        kind = errno.EISDIR if final.is_dir() else errno.ENOTDIR
        raise OSError(kind, os.strerror(kind), str(final))
    if not final.is_dir():
        entry.replace(final)
        return
    old = passing / f"{final.name}.old"
    final.replace(old)
    try:
        entry.replace(final)
    except OSError:
        old.replace(final)
        raise


def _probe(path: Path) -> int:
    """Fail now, with the errno that errors from native code lack, or give the mode that new files have."""
    with path.open("xb") as made:
        mode = os.fstat(made.fileno()).st_mode
    path.unlink()
    return stat.S_IMODE(mode)


def _remove(path: Path) -> None:
    # Where a parent is not a folder, or not ours, there is nothing to remove.
    with suppress(OSError):
        path.unlink()


def _free_bytes(path: Path) -> int:
    """Bytes free where `path` is going to be; a folder that is not there yet is made on its parent's disk."""
    existing = next((folder for folder in path.absolute().parents if folder.is_dir()), Path.cwd())
    return shutil.disk_usage(existing).free


def _flush_to_disk(path: Path) -> None:
    """Without it a power cut after the rename can leave an empty file under the final name."""
    with path.open("rb+") as written:
        os.fsync(written.fileno())
