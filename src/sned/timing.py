"""Timing callables against each other, so that a machine that slows down slows all of them."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sned.errors import MeasureError
from sned.progress import SILENT, Progress
from sned.runtime import away_from_workers

NOISY_SPREAD = 0.25
"""A p90 this fraction above the median means that the machine was busy with something else."""


SETTLE_MS = 5.0
"""Until a network finds the caches as it leaves them, where others run between its samples."""

Clock = Callable[[], int]
"""Nanoseconds since some moment."""

FINEST_S = 1e-6


def processor_clock(threads: int) -> Clock:
    """The time for which this thread had a core: other programs that take the core away do not add to it.

    Where that cannot be told (there are several threads, or the system counts too coarsely), the time of the wall.
    """
    fine = time.get_clock_info("thread_time").resolution <= FINEST_S
    return time.thread_time_ns if threads == 1 and fine else time.perf_counter_ns


@dataclass(frozen=True)
class Latency:
    """How long one call takes: milliseconds at the median, 10th and 90th percentile of `runs` samples."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int

    @property
    def noisy(self) -> bool:
        """Whether the spread is so wide that a difference of a few per cent means nothing."""
        return self.p90_ms > (1 + NOISY_SPREAD) * self.median_ms


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    runs: int = 50,
    warmup: int = 5,
    threads: int = 1,
    min_sample_ms: float = 0.0,
    settle_ms: float = 0.0,
    settle_calls: int = 1,
    max_seconds: float = float("inf"),
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = SILENT,
) -> dict[str, Latency]:
    """Time each of `functions` once a round, in a new random order each round.

    Args:
        functions: what to time, by name; called without arguments. Setting the threads is the caller's job.
        runs: rounds, at least 1: samples of each function.
        warmup: rounds before those that count, at least 0; after a quarter of `max_seconds` no other is begun.
        threads: how many threads the callables use; with several the calling one is moved ahead of each sample to a
            processor that no other is pinned to (`sned.runtime.away_from_workers`).
        min_sample_ms: callables faster than this are called several times a sample and averaged, because the
            clock and the call itself cost about 0.1 µs. 0: one call a sample.
        settle_ms: calls before each sample that are not timed, for so long; 0: none. What runs between two samples
            takes the caches: it was some milliseconds until a network of two ran as it runs alone.
        settle_calls: so many calls at least, at least 1.
        max_seconds: no new round is begun after that long, once there are five.
        seed: of the order of the rounds.
        clock: nanoseconds: of the wall, or `processor_clock`.
        progress: told of each round.

    Returns:
        For each name its `Latency` in milliseconds a call.

    Raises:
        MeasureError: `runs` < 1, `warmup` < 0, `settle_ms` < 0 or `settle_calls` < 1.
    """
    if runs < 1 or warmup < 0:
        raise MeasureError(f"`runs` must be at least 1 and `warmup` at least 0, got {runs=} and {warmup=}.")
    if settle_ms < 0 or settle_calls < 1:
        raise MeasureError(
            f"`settle_ms` must be at least 0 and `settle_calls` at least 1, got {settle_ms=} and {settle_calls=}."
        )
    samples: dict[str, list[float]] = {name: [] for name in functions}
    if not functions:
        return {}
    names = list(functions)
    rng = np.random.default_rng(seed)
    move_away = away_from_workers(threads)
    with progress.task("timing", total=runs) as advance, _without_collector():
        warm = time.perf_counter() + max_seconds / 4
        for done in range(warmup):
            if done and time.perf_counter() > warm:
                break
            for name in names:
                functions[name]()
        calls = {name: _calls_per_sample(functions[name], min_sample_ms, clock) for name in names}
        deadline = time.perf_counter() + max_seconds
        for done in range(runs):
            if done >= min(runs, 5) and time.perf_counter() > deadline:
                break
            for place in rng.permutation(len(names)):
                name = names[place]
                move_away()
                _settle(functions[name], settle_ms, settle_calls)
                samples[name].append(_sample_ms(functions[name], calls[name], clock))
            advance(1)
    return {name: _summary(values, threads) for name, values in samples.items()}


def _calls_per_sample(function: Callable[[], object], min_sample_ms: float, clock: Clock) -> int:
    """How many calls make a sample long enough, going by the fastest of three: a call may be disturbed."""
    if min_sample_ms <= 0:
        return 1
    once = min(_sample_ms(function, 1, clock) for _ in range(3))
    return max(1, int(np.ceil(min_sample_ms / max(once, 1e-4))))


def _settle(function: Callable[[], object], settle_ms: float, calls: int) -> None:
    if settle_ms == 0:
        return
    until = time.perf_counter_ns() + settle_ms * 1e6
    for _ in range(calls):
        function()
    while time.perf_counter_ns() < until:
        function()


def _sample_ms(function: Callable[[], object], calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls / 1e6


def _summary(samples_ms: list[float], threads: int) -> Latency:
    p10, median, p90 = np.percentile(samples_ms, [10, 50, 90])
    return Latency(float(median), float(p10), float(p90), len(samples_ms), threads)


@contextmanager
def _without_collector() -> Iterator[None]:
    """A garbage collection in the middle of a sample would be counted as the callable's own time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
