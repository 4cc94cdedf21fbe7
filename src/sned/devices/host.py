"""Time single ops on this machine, in ONNX Runtime, and make tables of them.

What a session costs besides its op is measured with ops that do nothing and taken off, so that the times of
the ops of a network add up to the time of the network; it is added once.

Times are kept in units of a yardstick (`sned.devices.timer`), which itself is timed anew each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from sned.devices import cold
from sned.devices.cold import BYTES, HAVE_WEIGHTS, Cold, cold_of, fetched_us
from sned.devices.grids import Point
from sned.devices.kernels import FloatArray, Workload
from sned.devices.layout import Chosen, Family, Launch, kernel_times, launches
from sned.devices.probe import nodes, yardstick
from sned.devices.recipes import RECIPES
from sned.devices.store import Store, key_of
from sned.devices.table import Table
from sned.devices.timer import YARDSTICK, Probe, Timer
from sned.progress import SILENT, Progress


@dataclass(frozen=True)
class Wanted:
    """A family of ops and the widths that can occur."""

    family: Family
    low: Point
    high: Point

    @property
    def like(self) -> tuple[Family, tuple[float | None, ...]]:
        """What ops have in common that share a table: the family, and the widths that no plan changes."""
        fixed = (a if a == b else None for a, b in zip(self.low, self.high, strict=True))
        return self.family, tuple(fixed)


Axes = tuple[FloatArray, ...]
Grids = Mapping[Wanted, Axes]


@dataclass(frozen=True, eq=False)
class OpTables:
    """What was measured on this machine, ready to be asked.

    Attributes:
        block: channels in a block of the runtime's layout; 1 where it has none.
        call_us: what one call of a network costs before and after its ops.
        yardstick_us: of the op that the times were compared with.
        tables: of each launch of the network in order: microseconds over the coordinates of its recipe.
        cold: what it costs to fetch weights that have left the cache.
    """

    block: int
    call_us: float
    yardstick_us: float
    tables: Sequence[Table]
    cold: Cold

    def microseconds(self, work: Workload, sizes: FloatArray) -> FloatArray:
        """Time every kernel of a network: `[kernels, P]` for `sizes[P, S]`."""

        def time(launch: Launch, chosen: Chosen) -> FloatArray:
            del chosen
            coordinates = RECIPES[launch.family.recipe].coordinates(launch.widths, self.block)
            return self.tables[launch.place](coordinates)

        made = launches(work, sizes, self.block)
        times = kernel_times(len(work.kernels), len(sizes), made, time)
        far = self.cold.reach(work.weights_of(sizes) * BYTES, times.sum(axis=0))

        def fetch(launch: Launch, chosen: Chosen) -> FloatArray:
            return fetched_us(self.cold, launch.family, launch.widths, far[chosen])

        reading = (launch for launch in made if launch.family.recipe in HAVE_WEIGHTS)
        return times + kernel_times(len(work.kernels), len(sizes), reading, fetch)


def measure(
    wanted: Sequence[Wanted],
    block: int,
    store: Store,
    *,
    seconds: float = 20.0,
    progress: Progress = SILENT,
) -> OpTables:
    """Time what is wanted and not yet known, in about `seconds`, and make tables of it.

    The corners of every table are measured whatever it takes; points between them as long as there is time.

    Args:
        wanted: families and their widths, of each launch of the network in order.
        block: of the runtime's layout, from `block_size`.
        store: what is known; new times are added and saved.
        seconds: how long to measure.
        progress: told of each op.
    """
    each = joined(wanted)
    coarse, fine = ({want: grid(want, block, density) for want in each} for density in (2, 3))
    needed = _unknown([*general(block), *_points(coarse, block)], store)
    better = _unknown(_points(_begun(fine, coarse, needed, block), block), store)
    better = [point for point in better if point.key not in {known.key for known in needed}]
    timer = Timer(store, block, time.perf_counter() + seconds)
    with progress.task("measuring ops", total=len(needed) + len(better)) as advance:
        timer.time(needed, advance, left=len(needed) + len(better))
        timer.time(better, advance, left=len(better), optional=True)
    known = timer.microseconds
    grids = {
        w: fine[w] if all(p.key in known for p in _points({w: fine[w]}, block)) else coarse[w] for w in fine
    }
    return _tables([(want.family, grids[want]) for want in each], block, store.environment.threads, known)


def joined(wanted: Sequence[Wanted]) -> list[Wanted]:
    """What is wanted, each with the smallest and largest widths of all that are like it."""
    ranges: dict[object, tuple[Point, Point]] = {}
    for want in wanted:
        low, high = ranges.get(want.like, (want.low, want.high))
        ranges[want.like] = (tuple(map(min, low, want.low)), tuple(map(max, high, want.high)))
    return [Wanted(want.family, *ranges[want.like]) for want in wanted]


def grid(want: Wanted, block: int, density: int) -> Axes:
    """The coordinates at which a family is timed for what is wanted of it."""
    return RECIPES[want.family.recipe].grid(want.low, want.high, block, density)


def _points(grids: Grids, block: int) -> list[Probe]:
    return [
        Probe(
            key_of(want.family, point), partial(RECIPES[want.family.recipe].model, want.family, point, block)
        )
        for want, axes in grids.items()
        for point in product(*axes)
    ]


def _begun(fine: Grids, coarse: Grids, needed: Sequence[Probe], block: int) -> Grids:
    """The fine grids of what is measured now; what was good enough the last time stays as it is."""
    keys = {point.key for point in needed}
    return {w: axes for w, axes in fine.items() if any(p.key in keys for p in _points({w: coarse[w]}, block))}


def _unknown(points: Sequence[Probe], store: Store) -> list[Probe]:
    return list({point.key: point for point in points if point.key not in store.yardsticks}.values())


def _tables(
    grids: Sequence[tuple[Family, Axes]], block: int, threads: int, known: Mapping[str, float]
) -> OpTables:
    _, empty = overheads(known)
    tables = []
    for family, axes in grids:
        times = np.array([known[key_of(family, point)] for point in product(*axes)])
        tables.append(Table(axes, times.reshape([len(axis) for axis in axes]) - empty))
    return OpTables(
        block=block,
        call_us=call_us(known, threads),
        yardstick_us=known[YARDSTICK],
        tables=tables,
        cold=cold_of(known, empty, known[YARDSTICK]),
    )


def overheads(known: Mapping[str, float]) -> tuple[float, float]:
    """Microseconds of a node that does nothing, and of a session without nodes."""
    node = (known["nodes 9"] - known["nodes 1"]) / 8
    return node, known["nodes 1"] - node


def call_us(known: Mapping[str, float], threads: int) -> float:
    """Microseconds that one call of a network costs besides its ops; to wake the other threads is a part of it."""
    node, _ = overheads(known)
    call = known["call"] - node
    waking = known["yardstick called"] - known[YARDSTICK] - call if threads > 1 else 0.0
    return max(0.0, call) + max(0.0, waking)


def general(block: int) -> list[Probe]:
    """What is measured besides ops: what a session, a node and a call cost, and how far away weights are."""
    return [
        Probe("nodes 1", partial(nodes, 1)),
        Probe("nodes 9", partial(nodes, 9)),
        Probe("call", partial(nodes, 1)),
        Probe("yardstick called", partial(yardstick, block)),
        *cold.probes(block),
    ]
