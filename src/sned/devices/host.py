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
from sned.devices.cold import BYTES, Cold, cold_of, fetching
from sned.devices.grids import Point
from sned.devices.kernels import FloatArray, Workload
from sned.devices.layout import Chosen, Family, Launch, kernel_times
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


@dataclass(frozen=True, eq=False)
class OpTables:
    """What was measured on this machine, ready to be asked.

    Attributes:
        block: channels in a block of the runtime's layout; 1 where it has none.
        call_us: what one call of a network costs before and after its ops.
        yardstick_us: of the op that the times were compared with.
        tables: microseconds of each family over the coordinates of its recipe.
        cold: what it costs to fetch weights that have left the cache.
    """

    block: int
    call_us: float
    yardstick_us: float
    tables: Mapping[Family, Table]
    cold: Cold

    def microseconds(self, work: Workload, sizes: FloatArray) -> FloatArray:
        """Time every kernel of a network: `[kernels, P]` for `sizes[P, S]`."""

        def time(launch: Launch, chosen: Chosen) -> FloatArray:
            del chosen
            return self.op_us(launch.family, launch.widths)

        times = kernel_times(work, sizes, self.block, time)
        held = {
            index: kernel.weights.at(sizes) * BYTES
            for index, kernel in enumerate(work.kernels)
            if kernel.weights.factor
        }
        far = self.cold.reach(np.sum(list(held.values()), axis=0), times.sum(axis=0))
        for index, own in held.items():
            kernel = work.kernels[index]
            uses = float(np.max(kernel.macs.at(sizes) * BYTES / np.maximum(own, 1.0)))
            times[index] += self.cold.lost_us(far, own, fetching(kernel.kind, kernel.statics, uses))
        return times

    def op_us(self, family: Family, widths: Sequence[FloatArray]) -> FloatArray:
        """Time one op of a family at `P` widths, given as one `[P]` array an axis."""
        return self.tables[family](RECIPES[family.recipe].coordinates(widths, self.block))


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
        wanted: families and their widths; equal families are joined.
        block: of the runtime's layout, from `block_size`.
        store: what is known; new times are added and saved.
        seconds: how long to measure.
        progress: told of each op.
    """
    ranges = joined(wanted)
    coarse, fine = (
        {f: RECIPES[f.recipe].grid(low, high, block, density) for f, (low, high) in ranges.items()}
        for density in (2, 3)
    )
    needed = _unknown([*general(block), *_points(coarse, block)], store)
    better = _unknown(_points(_begun(fine, coarse, needed, block), block), store)
    better = [point for point in better if point.key not in {known.key for known in needed}]
    timer = Timer(store, block, time.perf_counter() + seconds)
    with progress.task("measuring ops", total=len(needed) + len(better)) as advance:
        timer.time(needed, advance, left=len(needed) + len(better))
        timer.time(better, advance, left=len(better), optional=True)
    times = {**store.yardsticks, **timer.relative}
    known = {key: value * timer.yardstick_us for key, value in times.items()}
    grids = {
        f: fine[f] if all(p.key in known for p in _points({f: fine[f]}, block)) else coarse[f] for f in ranges
    }
    return _tables(grids, block, store.environment.threads, known)


def joined(wanted: Sequence[Wanted]) -> dict[Family, tuple[Point, Point]]:
    """The families, each with the smallest and largest widths that occur anywhere."""
    ranges: dict[Family, tuple[Point, Point]] = {}
    for want in wanted:
        low, high = ranges.get(want.family, (want.low, want.high))
        ranges[want.family] = (tuple(map(min, low, want.low)), tuple(map(max, high, want.high)))
    return ranges


def _points(grids: Mapping[Family, tuple[FloatArray, ...]], block: int) -> list[Probe]:
    return [
        Probe(key_of(family, point), partial(RECIPES[family.recipe].model, family, point, block))
        for family, axes in grids.items()
        for point in product(*axes)
    ]


def _begun(
    fine: Mapping[Family, tuple[FloatArray, ...]],
    coarse: Mapping[Family, tuple[FloatArray, ...]],
    needed: Sequence[Probe],
    block: int,
) -> dict[Family, tuple[FloatArray, ...]]:
    """The fine grids of families that are measured now; what was good enough the last time stays as it is."""
    keys = {point.key for point in needed}
    return {f: axes for f, axes in fine.items() if any(p.key in keys for p in _points({f: coarse[f]}, block))}


def _unknown(points: Sequence[Probe], store: Store) -> list[Probe]:
    return list({point.key: point for point in points if point.key not in store.yardsticks}.values())


def _tables(
    grids: Mapping[Family, tuple[FloatArray, ...]],
    block: int,
    threads: int,
    known: Mapping[str, float],
) -> OpTables:
    _, empty = overheads(known)
    tables = {}
    for family, axes in grids.items():
        times = np.array([known[key_of(family, point)] for point in product(*axes)])
        tables[family] = Table(axes, times.reshape([len(axis) for axis in axes]) - empty)
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
