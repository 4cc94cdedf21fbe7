"""Ctrl-C: stop at once, and say what was kept."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

from sned.files import noting

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
    """Turn Ctrl-C within the block into `Stopped`, naming what the block has written into `folder` by then.

    Files are written beside their place and renamed, so that what is there is whole.
    """
    with noting() as written:
        try:
            yield
        except KeyboardInterrupt as error:
            raise Stopped(_kept(folder, written)) from error


def _kept(folder: Path | None, written: Iterable[Path]) -> str:
    if folder is None:
        return _NOTHING
    there = [
        path.relative_to(folder.absolute())
        for path in written
        if path.is_relative_to(folder.absolute()) and path.exists()
    ]
    names = sorted({str(path) for path in there if path.parts[0] != RESUME})
    learnt = any(path.parts[0] == RESUME for path in there)
    if not there:
        return _NOTHING
    kept = f" Kept in '{folder}', each of them whole: {', '.join(names)}." if names else ""
    more = (
        f" What was learnt is kept in '{folder / RESUME}': the same command goes on from there."
        if learnt
        else ""
    )
    return f"Stopped.{kept}{more} The model is as it was."
