import gc
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest

from sned.errors import MeasureError
from sned.timing import Latency, interleaved, processor_clock


def test_figures_are_percentiles_of_what_the_clock_said() -> None:
    """Oracle: a clock that we move ourselves."""
    now = 0
    costs = iter([5, 1, 2, 3, 4, 100])  # ms; the first is warm-up

    def work() -> None:
        nonlocal now
        now += next(costs) * 1_000_000

    latency = interleaved({"work": work}, runs=5, warmup=1, threads=3, clock=lambda: now)["work"]
    p10, median, p90 = np.percentile([1, 2, 3, 4, 100], [10, 50, 90])
    assert (latency.runs, latency.threads) == (5, 3)
    assert (latency.p10_ms, latency.median_ms, latency.p90_ms) == pytest.approx((p10, median, p90))


def test_every_round_calls_each_once_in_changing_order() -> None:
    calls: list[str] = []
    names = ["a", "b", "c"]
    interleaved({name: lambda name=name: calls.append(name) for name in names}, runs=20, warmup=0)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 60, 3)]
    assert len(calls) == 60
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 3


def test_the_order_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        calls: list[str] = []
        interleaved({name: lambda name=name: calls.append(name) for name in "abcd"}, runs=9, seed=seed)
        return calls

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_slower_measures_slower() -> None:
    latency = interleaved(
        {"slow": lambda: sum(range(60_000)), "fast": lambda: sum(range(6_000))}, runs=15, warmup=1
    )
    assert latency["slow"].median_ms > 3 * latency["fast"].median_ms
    for one in latency.values():
        assert 0 < one.p10_ms <= one.median_ms <= one.p90_ms


def test_fast_callables_are_called_many_times_a_sample() -> None:
    counts: Counter[str] = Counter()
    latency = interleaved(
        {"quick": lambda: counts.update(["quick"])}, runs=5, warmup=1, min_sample_ms=1.0
    )["quick"]  # fmt: skip
    assert counts["quick"] > 5 * 10
    assert latency.median_ms < 0.2


def test_the_time_limit_stops_after_five_rounds() -> None:
    latency = interleaved({"nap": lambda: time.sleep(0.002)}, runs=1000, warmup=0, max_seconds=0.0)["nap"]
    assert latency.runs == 5


def test_warming_up_takes_a_quarter_of_the_time_limit() -> None:
    calls: list[float] = []

    def slow() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.02)

    start = time.perf_counter()
    interleaved({"slow": slow}, runs=1, warmup=1000, max_seconds=0.2)
    assert 1 < len([at for at in calls if at < start + 0.2]) <= 6
    calls.clear()
    interleaved({"slow": slow}, runs=1, warmup=3, max_seconds=0)
    assert len(calls) == 2  # one to warm up, one that counts


def test_the_processor_clock_stands_still_while_nothing_is_done() -> None:
    clock = processor_clock(1)
    if clock is not time.thread_time_ns:
        pytest.skip("this system counts too coarsely")
    start = clock()
    time.sleep(0.02)
    assert clock() - start < 10_000_000
    assert processor_clock(2) is time.perf_counter_ns


@pytest.mark.parametrize(("p90", "noisy"), [(1.2, False), (1.3, True)])
def test_noisy(p90: float, noisy: bool) -> None:
    assert Latency(1.0, 0.9, p90, runs=10, threads=1).noisy is noisy


def test_the_collector_is_off_inside_and_on_again_after() -> None:
    seen: list[bool] = []
    interleaved({"look": lambda: seen.append(gc.isenabled())}, runs=2)
    assert not any(seen)
    assert gc.isenabled()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleaved({"fail": fail})
    assert gc.isenabled()


def test_nothing_to_time() -> None:
    assert interleaved({}) == {}


@pytest.mark.parametrize(("runs", "warmup"), [(0, 1), (1, -1)])
def test_bad_counts(runs: int, warmup: int) -> None:
    with pytest.raises(MeasureError, match=rf"got runs={runs} and warmup={warmup}"):
        interleaved({"a": int}, runs=runs, warmup=warmup)


def test_settling_calls_are_not_samples() -> None:
    calls: list[str] = []

    def called(name: str) -> None:
        calls.append(name)
        time.sleep(0.001)

    functions = {name: partial(called, name) for name in "ab"}
    latency = interleaved(functions, runs=4, warmup=0, settle_ms=2.5)
    assert latency["a"].runs == 4
    settling = len(calls) - 2 * 4
    assert 2 * 4 <= settling <= 2 * 4 * 3  # as many of a millisecond as begin within 2.5, at least one
    calls.clear()
    interleaved(functions, runs=4, warmup=0, settle_ms=1e-6)
    assert len(calls) == 2 * 4 * 2
    calls.clear()
    interleaved(functions, runs=4, warmup=0, settle_ms=1e-6, settle_calls=3)
    assert len(calls) == 2 * 4 * (1 + 3)
    with pytest.raises(MeasureError, match=r"`settle_ms` must be at least 0 .*, got settle_ms=-1"):
        interleaved({"a": int}, settle_ms=-1)
    with pytest.raises(MeasureError, match=r"`settle_calls` at least 1, got .*settle_calls=0"):
        interleaved({"a": int}, settle_ms=1, settle_calls=0)
