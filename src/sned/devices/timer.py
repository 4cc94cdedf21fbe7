"""Time many ops against each other and a yardstick, until a deadline; what is known is kept and not timed again.

Times are in units of a yardstick, an op that is timed in the same rounds: a machine that slows down (heat, company)
slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from sned.devices.probe import open_op, yardstick
from sned.devices.store import Store
from sned.progress import Advance
from sned.timing import Latency, interleaved, processor_clock

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue

CHUNK = 48
"""Sessions held open at a time and timed against each other."""

CHUNK_BYTES = 192 << 20
SAMPLE_MS = 0.3
"""Of a sample, and of the runs ahead of it: longer than the threads of another op stay awake (`AWAKE_US`)."""

SETTLE_CALLS = 2
"""Until large weights lie where the last run of the same op leaves them."""

RUNS = 15
DISTURBED = 0.25
"""A median this fraction above the 10th percentile means that half of the samples were disturbed."""

BUSY = 0.05
"""A yardstick this fraction above its quickest means that the machine was doing something else."""

YARDSTICK = "yardstick"
TURNS = tuple(f"{YARDSTICK}, turn {turn}" for turn in range(4))
"""The yardstick is timed so often a round: everything else is divided by what it takes, and must not be by what other
programs add to that."""

CALLED = ("call", "yardstick called")
"""What is timed as users call it."""

TIMED_SHARE = 0.6
"""Of the time given: the rest goes by while models are made and opened."""

Runner = Callable[[], object]


@dataclass(frozen=True)
class Probe:
    """Something to time: its name in the store, and the model that runs nothing else."""

    key: str
    model: partial[ModelProto]


def yardstick_us(block: int, threads: int, seconds: float = 0.2) -> float:
    """How long the yardstick takes on this machine now: microseconds, at the median."""
    run = {YARDSTICK: runner(yardstick(block), threads)}
    times = interleaved(
        run, runs=200, warmup=5, threads=threads, min_sample_ms=SAMPLE_MS, max_seconds=seconds,
        clock=processor_clock(threads),
    )  # fmt: skip
    return times[YARDSTICK].median_ms * 1e3


class Timer:
    """Times points until a deadline; keeps in the store those that were not disturbed.

    Attributes:
        relative: all that were timed, in yardsticks; of what was timed twice the time that was shorter by the clock.
        disturbed: names of those of which half of the samples were disturbed.
    """

    def __init__(self, store: Store, block: int, deadline: float) -> None:
        self.relative: dict[str, float] = {}
        self.disturbed: set[str] = set()
        self._store = store
        self._deadline = deadline
        self._threads = store.environment.threads
        self._yardstick = runner(yardstick(block), self._threads)
        self._lengths_ms: list[float] = []
        self._paces_ms: list[float] = []
        self._quickest_ms: dict[str, float] = {}
        self._interleaved({}, 0.1, RUNS)

    def until(self, deadline: float) -> None:
        """Go on until another deadline."""
        self._deadline = deadline

    @property
    def yardstick_us(self) -> float:
        """How long the yardstick took, over all rounds."""
        return float(np.median(self._lengths_ms)) * 1e3

    @property
    def busy(self) -> float:
        """The share of the rounds in which the yardstick took longer than at its quickest."""
        return float(np.mean(np.array(self._paces_ms) > (1 + BUSY) * min(self._paces_ms)))

    @property
    def microseconds(self) -> dict[str, float]:
        """How long everything takes that was timed, now or before; kept times were not disturbed, and go first."""
        held = {**self.relative, **self._store.yardsticks}
        return {key: relative * self.yardstick_us for key, relative in held.items()}

    def time(
        self,
        points: Iterable[Probe],
        advance: Advance,
        *,
        left: int,
        runs: int = RUNS,
        optional: bool = False,
    ) -> None:
        """Time `points` in their share of the time for all that are `left`; optional ones until it ends."""
        if optional:  # to open an op takes time, too
            points = takewhile(lambda _: time.perf_counter() < self._deadline, points)
        for runners in self._chunks(points):
            seconds = max(0.0, self._deadline - time.perf_counter())
            self._interleaved(runners, seconds * len(runners) / left * TIMED_SHARE, runs)
            left -= len(runners)
            advance(len(runners))

    def _interleaved(self, runners: Mapping[str, Runner], seconds: float, runs: int) -> None:
        times = interleaved(
            {**runners, **dict.fromkeys(TURNS, self._yardstick)},
            runs=runs,
            warmup=1,
            threads=self._threads,
            min_sample_ms=SAMPLE_MS,
            settle_ms=SAMPLE_MS,
            settle_calls=SETTLE_CALLS,
            max_seconds=seconds,
            clock=processor_clock(self._threads),
        )
        # Other work on the machine only adds to a time, so the quicker samples say more of the op; how long
        # the yardstick takes on the whole is its median, as it will be that of the network.
        turns = [times.pop(name) for name in TURNS]
        self._lengths_ms.append(float(np.median([turn.median_ms for turn in turns])))
        yardstick_ms = float(np.median([turn.p10_ms for turn in turns]))
        self.relative[YARDSTICK] = 1.0
        self._paces_ms.append(yardstick_ms)
        for key, latency in times.items():
            self._keep(key, latency, yardstick_ms)
        if runners:
            self._store.save()

    def _keep(self, key: str, latency: Latency, yardstick_ms: float) -> None:
        """Keep a time, if it is not longer than an earlier one.

        Other work that slows the yardstick down more than the op makes the ratio too small, so the clock decides,
        not the ratio; of what another process timed no more than that is known.
        """
        known = self._store.yardsticks
        relative = latency.p10_ms / yardstick_ms
        if key not in self._quickest_ms:
            relative = min(relative, known.get(key, relative))
        elif latency.p10_ms >= self._quickest_ms[key]:
            return
        self._quickest_ms[key] = latency.p10_ms
        self.relative[key] = relative
        if latency.median_ms > (1 + DISTURBED) * latency.p10_ms:
            self.disturbed.add(key)
        else:
            known[key] = relative

    def _chunks(self, points: Iterable[Probe]) -> Iterator[dict[str, Runner]]:
        runners: dict[str, Runner] = {}
        held = 0
        for point in points:
            model = point.model()
            held += model.ByteSize()
            if runners and (len(runners) >= CHUNK or held > CHUNK_BYTES):
                yield runners
                runners, held = {}, model.ByteSize()
            runners[point.key] = runner(model, self._threads, called=point.key in CALLED)
        if runners:
            yield runners


@dataclass(frozen=True)
class _Bound:
    """A session bound to inputs that stay in place; called, it runs."""

    run: Callable[[IOBinding], None]
    binding: IOBinding
    inputs: tuple[OrtValue, ...]

    def __call__(self) -> None:
        self.run(self.binding)


def runner(model: ModelProto, threads: int, *, called: bool = False) -> Runner:
    """What runs a model; `called`: by the call that users make, which costs more, and wakes sleeping threads."""
    import onnxruntime

    session = open_op(model, threads, awake=not called)
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in session.get_inputs()}
    if called:
        return partial(session.run, None, feeds)
    binding = session.io_binding()
    inputs = tuple(onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in feeds.values())
    for name, value in zip(feeds, inputs, strict=True):
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return _Bound(session.run_with_iobinding, binding, inputs)
