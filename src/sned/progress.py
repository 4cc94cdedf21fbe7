"""How long work says how far it is, without knowing who listens."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display


class Advance(Protocol):
    """Says that `amount` more of a task's total is done."""

    def __call__(self, amount: float = 1, /) -> None: ...


class Progress(Protocol):
    """Shows tasks: `with progress.task("measuring ops", total=37) as advance: advance(1)`."""

    def task(self, label: str, total: float | None = None) -> AbstractContextManager[Advance]:
        """Open a task of `total` steps (None: unknown how many); it ends with the block."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Advance]:
        """Open a task that nobody sees."""
        del label, total
        yield _ignore


class RichProgress:
    """Shows a bar a task in a terminal, and one line a finished outermost task where there is none.

    The display lives from the first open task to the last, so that text printed between tasks stays whole.

    Args:
        console: where to draw; standard error by default, so that tables on standard output can be piped.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console
        self._display: Display | None = None

    @contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Advance]:
        """Open a bar; one opened inside another disappears when it ends."""
        if self._display is not None:
            with _bar(self._display, f"  {label}", total, keep=False) as advance:
                yield advance
            return
        with _make_display(self._console) as self._display:
            try:
                with _bar(self._display, label, total, keep=True) as advance:
                    yield advance
            finally:
                self._display = None


_LONG = 10.0
"""Seconds from which on a task is worth saying how long it will take."""

SILENT: Progress = SilentProgress()
"""What library code uses when nobody listens."""


def _ignore(amount: float = 1, /) -> None:
    del amount


@contextmanager
def _bar(display: "Display", label: str, total: float | None, *, keep: bool) -> Iterator[Advance]:
    task = display.add_task(label, total=total)

    def advance(amount: float = 1, /) -> None:
        display.advance(task, amount)

    try:
        yield advance
    except BaseException:
        display.stop_task(task)
        raise
    # A task that turned out shorter than announced (early stop) is nonetheless done.
    display.update(task, total=total or 1, completed=total or 1, visible=keep)


def _make_display(console: "Console | None") -> "Display":
    # Imported late: a third of the import time of the library, and of no use to those who are silent.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class SpeedAndTimeLeft(TextColumn):
        """How much is done a second, and how many seconds are left at that; nothing for short tasks."""

        def render(self, task: Task) -> Text:
            """ "1,234/s, 0:05:10 left"."""
            speed, left = task.speed, task.time_remaining
            if not speed or left is None or task.finished or (task.elapsed or 0) + left < _LONG:
                return Text()
            return Text(f"{speed:,.0f}/s, {timedelta(seconds=round(left))} left")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        SpeedAndTimeLeft(""),
        console=console or Console(stderr=True),
    )
