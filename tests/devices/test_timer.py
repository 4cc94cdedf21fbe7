"""What the times of some rounds are taken to say; how long rounds take is not tested here."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sned.devices.probe import environment, yardstick
from sned.devices.store import Store
from sned.devices.timer import YARDSTICK, Probe, Timer
from sned.timing import Latency

OP = Probe("op", partial(yardstick, 1))


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Timer, list[float]]:
    """A timer, and a list that says how long the op takes each time (the yardstick always takes 2 ms)."""
    lengths: list[float] = []

    def interleaved(functions: Mapping[str, object], **_: Any) -> dict[str, Latency]:
        def latency(name: str) -> Latency:
            quick = 2.0 if name.startswith(YARDSTICK) else lengths.pop(0)
            return Latency(quick, quick, quick, runs=3, threads=1)

        return {name: latency(name) for name in functions}

    monkeypatch.setattr("sned.devices.timer.interleaved", interleaved)
    return Timer(Store.open(environment(1), tmp_path), 1, time.perf_counter() + 60), lengths


@pytest.mark.parametrize("order", [(8.0, 5.0), (5.0, 8.0)])
def test_of_what_is_timed_twice_the_less_counts(
    timed: tuple[Timer, list[float]], tmp_path: Path, order: tuple[float, float]
) -> None:
    timer, lengths = timed
    for length in order:
        lengths.append(length)
        timer.time([OP], lambda _: None, left=1)
    assert timer.relative["op"] == 2.5
    assert Store.open(environment(1), tmp_path).yardsticks["op"] == 2.5


def test_a_disturbed_yardstick_makes_nothing_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the op takes no less by the clock, only the yardstick takes longer."""
    rounds = iter([(2.0, 1.0), (2.0, 5.0), (3.0, 5.1), (2.05, 4.9)])

    def interleaved(functions: Mapping[str, object], **_: Any) -> dict[str, Latency]:
        rule, op = next(rounds)
        taken = {name: rule if name.startswith(YARDSTICK) else op for name in functions}
        return {name: Latency(took, took, took, runs=3, threads=1) for name, took in taken.items()}

    monkeypatch.setattr("sned.devices.timer.interleaved", interleaved)
    timer = Timer(Store.open(environment(1), tmp_path), 1, time.perf_counter() + 60)
    for relative in (2.5, 2.5, 4.9 / 2.05):
        timer.time([OP], lambda _: None, left=1)
        assert timer.relative["op"] == Store.open(environment(1), tmp_path).yardsticks["op"] == relative
    assert timer.busy == 0.25


def test_a_turn_of_the_yardstick_that_was_disturbed_makes_nothing_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = iter([2.0, 3.0, 2.0, 2.0] * 2)

    def interleaved(functions: Mapping[str, object], **_: Any) -> dict[str, Latency]:
        taken = {name: next(slow) if name.startswith(YARDSTICK) else 5.0 for name in functions}
        return {name: Latency(took, took, took, runs=3, threads=1) for name, took in taken.items()}

    monkeypatch.setattr("sned.devices.timer.interleaved", interleaved)
    timer = Timer(Store.open(environment(1), tmp_path), 1, time.perf_counter() + 60)
    timer.time([OP], lambda _: None, left=1)
    assert timer.microseconds == {"op": 5000.0, YARDSTICK: 2000.0}
    assert timer.yardstick_us == 2000.0


def test_a_later_deadline_gives_more_time(timed: tuple[Timer, list[float]]) -> None:
    timer, lengths = timed
    timer.until(time.perf_counter() - 1)

    def taken() -> Iterator[Probe]:
        yield from (Probe(f"op {n}", OP.model) for n in range(100))

    lengths += [1.0] * 200
    timer.time(list(taken()), lambda _: None, left=100, optional=True)
    few = len(timer.relative)
    timer.until(time.perf_counter() + 60)
    timer.time(list(taken()), lambda _: None, left=100, optional=True)
    assert few < 100 < len(timer.relative)


def test_what_is_optional_is_left_when_the_time_is_over(timed: tuple[Timer, list[float]]) -> None:
    timer, lengths = timed
    lengths += [8.0]
    timer.until(time.perf_counter() - 1)
    timer.time([OP], lambda _: None, left=1, optional=True)
    assert "op" not in timer.relative
    timer.time([OP], lambda _: None, left=1)
    assert timer.relative["op"] == 4.0
