"""Ctrl-C: stop at once, and say what was kept."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

P = ParamSpec("P")

RESUME = ".resume"
"""As in `sned.pipeline`, which takes seconds to import."""

_NOTHING = "Stopped. Nothing was written, and the model is as it was."


class Stopped(Exception):
    """The user stopped a command; the text says what was kept."""


def stoppable(command: Callable[P, None], kept: str = _NOTHING) -> Callable[P, None]:
    """Make a command that Ctrl-C ends with `Stopped`, whatever it was doing, saying what was `kept`."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise Stopped(kept) from error

    return run


@contextmanager
def keeping(folder: Path | None) -> Iterator[None]:
    """Turn Ctrl-C within the block into `Stopped`, naming the files of `folder` that were finished by then.

    Files are written beside their place and renamed, so that what is there is whole.
    """
    started = time.time()
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(_kept(folder, started)) from error


def _kept(folder: Path | None, started: float) -> str:
    if folder is None or not folder.is_dir():
        return _NOTHING
    # File systems round times down, some to two seconds.
    finished = [file for file in folder.iterdir() if file.is_file() and file.stat().st_mtime >= started - 2]
    names = sorted(file.name for file in finished if not file.name.startswith("."))
    learnt = any((folder / RESUME).glob("*"))
    if not names and not learnt:
        return _NOTHING
    kept = f" Kept in '{folder}', each of them whole: {', '.join(names)}." if names else ""
    more = (
        f" What was learnt is kept in '{folder / RESUME}': the same command goes on from there."
        if learnt
        else ""
    )
    return f"Stopped.{kept}{more} The model is as it was."
