import io
import re
import time
from itertools import count

import pytest
from rich.console import Console

from sned.progress import SILENT, RichProgress


def shown(*, terminal: bool = False) -> tuple[RichProgress, io.StringIO]:
    text = io.StringIO()
    return RichProgress(Console(file=text, force_terminal=terminal, width=100)), text


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with SILENT.task("work", total=2) as advance:
        advance()
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_finished_task_leaves_one_line() -> None:
    progress, text = shown()
    with progress.task("training", total=3) as advance:
        advance(2)
    assert [line for line in text.getvalue().splitlines() if "training" in line] != []
    assert "3/3" in text.getvalue()


def test_inner_tasks_disappear_and_outer_ones_follow_each_other() -> None:
    progress, text = shown()
    with progress.task("outer", total=1) as outer:
        with progress.task("inner", total=5) as inner:
            inner(5)
        outer()
    with progress.task("next"):
        pass
    lines = text.getvalue()
    assert "outer" in lines
    assert "next" in lines
    assert "inner" not in lines


def test_a_failed_task_does_not_claim_to_be_done() -> None:
    progress, text = shown()
    with pytest.raises(ValueError, match="broken"), progress.task("training", total=3) as advance:
        advance()
        raise ValueError("broken")
    assert "1/3" in text.getvalue()
    with progress.task("again", total=1):
        pass
    assert "again" in text.getvalue()


def test_a_long_task_says_how_fast_it_is_and_how_long_it_will_take() -> None:
    text, seconds = io.StringIO(), count(0, 5)
    console = Console(file=text, force_terminal=True, width=140, get_time=lambda: float(next(seconds)))
    with RichProgress(console).task("training", total=100_000) as advance:
        for _ in range(4):
            advance(1000)
        time.sleep(0.3)  # the display draws itself ten times a second
    assert re.search(r"\d+/s, .*\d+:\d\d:\d\d left", text.getvalue())


def test_the_default_console_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress().task("training", total=1) as advance:
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "training" in err
