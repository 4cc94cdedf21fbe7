"""Time single ops on this machine, in ONNX Runtime, and make tables of them.

What a session costs besides its op is measured with ops that do nothing and taken off, so that the times of
the ops of a network add up to the time of the network; it is added once.

Times are kept in units of a yardstick, an op that is timed in the same rounds: a machine that slows down
    (heat, company)
slows both. The yardstick itself is timed anew each time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from sned.devices.grids import Point
from sned.devices.kernels import FloatArray
from sned.devices.layout import Family
from sned.devices.recipes import BLOCKED, RECIPES, constant, model_of
from sned.devices.store import Environment, Store
from sned.devices.table import Table
from sned.progress import SILENT, Advance, Progress
from sned.runtime import session_options
from sned.timing import interleaved

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CHUNK = 48
"""Sessions held open at a time and timed against each other."""

CHUNK_BYTES = 384 << 20
SAMPLE_MS = 0.3
RUNS = 15
DISTURBED = 0.25
"""A median this fraction above the 10th percentile means that half of the samples were disturbed."""

YARDSTICK = "yardstick"
_TIMED_SHARE = 0.6
"""Of the time given: the rest goes by while models are made and opened."""

Runner = Callable[[], object]
FOOTPRINTS_MB = (0.3, 0.6, 1.2, 1.8, 2.4, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


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
        cold: microseconds a byte by which a weight is slower when a network's weights fill `[footprint in
            bytes]`.
    """

    block: int
    call_us: float
    yardstick_us: float
    tables: Mapping[Family, Table]
    cold: tuple[FloatArray, FloatArray]

    def microseconds(self, family: Family, widths: Sequence[FloatArray]) -> FloatArray:
        """Time one op of a family at `P` widths, given as one `[P]` array an axis."""
        return self.tables[family](RECIPES[family.recipe].coordinates(widths, self.block))

    def cold_us_per_byte(self, footprint: FloatArray) -> FloatArray:
        """How much slower a byte of weights is than one in the nearest cache, by the bytes of all weights."""
        lost: FloatArray = np.interp(np.log2(np.maximum(footprint, 1.0)), np.log2(self.cold[0]), self.cold[1])
        return lost


@dataclass(frozen=True)
class _Point:
    key: str
    model: partial[ModelProto]


def measure(
    wanted: Sequence[Wanted],
    block: int,
    store: Store,
    *,
    seconds: float = 20.0,
    largest_footprint: float = 0.0,
    progress: Progress = SILENT,
) -> OpTables:
    """Time what is wanted and not yet known, in about `seconds`, and make tables of it.

    The corners of every table are measured whatever it takes; points between them as long as there is time.

    Args:
        wanted: families and their widths; equal families are joined.
        block: of the runtime's layout, from `block_size`.
        store: what is known; new times are added and saved.
        seconds: how long to measure.
        largest_footprint: bytes of the largest set of weights that will be asked about.
        progress: told of each op.
    """
    ranges = _joined(wanted)
    coarse, fine = (
        {f: RECIPES[f.recipe].grid(low, high, block, density) for f, (low, high) in ranges.items()}
        for density in (2, 3)
    )
    footprints = [mb for mb in FOOTPRINTS_MB if mb * 1e6 < 2 * largest_footprint] or [FOOTPRINTS_MB[0]]
    needed = _unknown([*_general(footprints, block), *_points(coarse, block)], store)
    better = _unknown([p for p in _points(fine, block) if p.key not in {n.key for n in needed}], store)
    timer = _Timer(store, block, time.perf_counter() + seconds)
    with progress.task("measuring ops", total=len(needed) + len(better)) as advance:
        timer.time(needed, advance, left=len(needed) + len(better))
        timer.time(better, advance, left=len(better), optional=True)
    known = {key: value * timer.yardstick_us for key, value in store.yardsticks.items()}
    grids = {
        f: fine[f] if all(p.key in known for p in _points({f: fine[f]}, block)) else coarse[f] for f in ranges
    }
    return _tables(grids, footprints, block, known)


def _joined(wanted: Sequence[Wanted]) -> dict[Family, tuple[Point, Point]]:
    ranges: dict[Family, tuple[Point, Point]] = {}
    for want in wanted:
        low, high = ranges.get(want.family, (want.low, want.high))
        ranges[want.family] = (tuple(map(min, low, want.low)), tuple(map(max, high, want.high)))
    return ranges


def _points(grids: Mapping[Family, tuple[FloatArray, ...]], block: int) -> list[_Point]:
    return [
        _Point(_key(family, point), partial(RECIPES[family.recipe].model, family, point, block))
        for family, axes in grids.items()
        for point in product(*axes)
    ]


def _unknown(points: Sequence[_Point], store: Store) -> list[_Point]:
    return list({point.key: point for point in points if point.key not in store.yardsticks}.values())


def _key(family: Family, point: Sequence[float]) -> str:
    return json.dumps([family.recipe, dict(family.statics), [float(width) for width in point]])


def _tables(
    grids: Mapping[Family, tuple[FloatArray, ...]],
    footprints: Sequence[float],
    block: int,
    known: Mapping[str, float],
) -> OpTables:
    node = (known["nodes 9"] - known["nodes 1"]) / 8
    empty = known["nodes 1"] - node
    tables = {}
    for family, axes in grids.items():
        times = np.array([known[_key(family, point)] for point in product(*axes)])
        tables[family] = Table(axes, times.reshape([len(axis) for axis in axes]) - empty)
    return OpTables(
        block=block,
        call_us=known["call"] - node,
        yardstick_us=known[YARDSTICK],
        tables=tables,
        cold=_cold(footprints, known, empty),
    )


def _cold(
    footprints: Sequence[float], known: Mapping[str, float], empty: float
) -> tuple[FloatArray, FloatArray]:
    """Microseconds a byte lost to weights that have left the cache, as the weights of a chain of ops grow."""
    per_op = np.array([(known[f"chain {mb}"] - empty) / _chain_length(mb) for mb in footprints])
    lost = np.maximum.accumulate(np.maximum(per_op - per_op.min(), 0.0))
    return np.array(footprints) * 1e6, lost / _CHAIN_BYTES


# --- timing --------------------------------------------------------------------------------------------


class _Timer:
    """Times points until a deadline and keeps them."""

    def __init__(self, store: Store, block: int, deadline: float) -> None:
        self._store = store
        self._deadline = deadline
        self._threads = store.environment.threads
        self._yardstick = {YARDSTICK: _runner(_yardstick(block), self._threads)}
        self._lengths_ms: list[float] = []
        self._interleaved({}, 0.1)

    @property
    def yardstick_us(self) -> float:
        """How long the yardstick took, over all rounds."""
        return float(np.median(self._lengths_ms)) * 1e3

    def time(self, points: Sequence[_Point], advance: Advance, *, left: int, optional: bool = False) -> None:
        """Time `points` in their share of the time for all that are `left`; optional ones until it ends."""
        for runners in self._chunks(points):
            seconds = max(0.0, self._deadline - time.perf_counter())
            self._interleaved(runners, seconds * len(runners) / left * _TIMED_SHARE)
            left -= len(runners)
            advance(len(runners))
            if optional and time.perf_counter() > self._deadline:
                return

    def _interleaved(self, runners: Mapping[str, Runner], seconds: float) -> None:
        times = interleaved(
            {**runners, **self._yardstick},
            runs=RUNS,
            warmup=1,
            threads=self._threads,
            min_sample_ms=SAMPLE_MS,
            settle=1,
            max_seconds=seconds,
        )
        # Other work on the machine only adds to a time, so the quicker samples say more of the op; how long
        # the yardstick takes on the whole is its median, as it will be that of the network.
        self._lengths_ms.append(times[YARDSTICK].median_ms)
        quick = {key: latency.p10_ms for key, latency in times.items()}
        disturbed = {
            key for key, latency in times.items() if latency.median_ms > (1 + DISTURBED) * quick[key]
        }
        self._keep({key: time_ms / quick[YARDSTICK] for key, time_ms in quick.items()}, disturbed)

    def _keep(self, relative: Mapping[str, float], disturbed: Set[str]) -> None:
        """Save for later what was measured without disturbance; the rest serves this time only."""
        self._store.yardsticks.update({k: value for k, value in relative.items() if k not in disturbed})
        if relative.keys() - disturbed - {YARDSTICK}:
            self._store.save()
        self._store.yardsticks.update(relative)

    def _chunks(self, points: Sequence[_Point]) -> Iterator[dict[str, Runner]]:
        runners: dict[str, Runner] = {}
        held = 0
        for point in points:
            model = point.model()
            held += model.ByteSize()
            if runners and (len(runners) >= CHUNK or held > CHUNK_BYTES):
                yield runners
                runners, held = {}, model.ByteSize()
            runners[point.key] = _runner(model, self._threads, called=point.key == "call")
        if runners:
            yield runners


def open_op(model: ModelProto, threads: int) -> InferenceSession:
    """Open a model of one op as it is, without the transformer that would put it into another layout."""
    import onnxruntime

    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"],
        disabled_optimizers=["NchwcTransformer"],
    )  # fmt: skip


def _runner(model: ModelProto, threads: int, *, called: bool = False) -> Runner:
    """Run a model on inputs that stay in place; `called`: by the call that users make, which costs more."""
    import onnxruntime

    session = open_op(model, threads)
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal(value.shape).astype(np.float32) for value in session.get_inputs()
    }
    if called:
        return partial(session.run, None, feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cpu")
    return partial(session.run_with_iobinding, binding)


# --- what is measured once a machine --------------------------------------------------------------

_CHAIN_CHANNELS = 64
_CHAIN_BYTES = _CHAIN_CHANNELS**2 * 9 * 4


def _chain_length(megabytes: float) -> int:
    return max(1, round(megabytes * 1e6 / _CHAIN_BYTES))


def _general(footprints: Sequence[float], block: int) -> list[_Point]:
    return [
        _Point("nodes 1", partial(_nodes, 1)),
        _Point("nodes 9", partial(_nodes, 9)),
        _Point("call", partial(_nodes, 1)),
        *(_Point(f"chain {mb}", partial(_chain, _chain_length(mb), block)) for mb in footprints),
    ]


def _nodes(count: int) -> ModelProto:
    """As many ops, each on one number."""
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    return model_of([helper.make_node("Sin", [a], [b]) for a, b in pairwise(names)], {"x": (1,)}, "y")


def _yardstick(block: int) -> ModelProto:
    """One convolution of middling size."""
    return _chain(1, block, side=16)


def _chain(count: int, block: int, side: int = 4) -> ModelProto:
    """As many small convolutions in a row, with weights of their own: how fast weights come from afar."""
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    channels = _CHAIN_CHANNELS
    attributes: dict[str, Any] = {
        "kernel_shape": [3, 3],
        "pads": [1, 1, 1, 1],
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": 1,
    }
    nodes = [
        helper.make_node("Conv", [a, f"w{i}"], [b], domain=BLOCKED if block > 1 else "", **attributes)
        for i, (a, b) in enumerate(pairwise(names))
    ]
    weights = [constant(f"w{i}", (channels, channels, 3, 3)) for i in range(count)]
    return model_of(nodes, {"x": (1, channels, side, side)}, "y", weights)


def block_size() -> int:
    """Ask the runtime for the channels in a block of its layout; 1 where it keeps images as they are."""
    import onnxruntime

    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])
    probe = model_of([node], {"x": (1, 64, 2, 2)}, "y", [constant("w", (1, 64, 1, 1))])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = session_options(1)
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = onnx.load(path).graph
    with suppress(StopIteration):
        conv = next(node for node in made.node if node.domain == BLOCKED and node.op_type == "Conv")
        weight = next(value for value in made.initializer if value.name == conv.input[1])
        return int(weight.dims[0])
    return 1


def environment(threads: int) -> Environment:
    """What measured times depend on, here and now."""
    import onnxruntime

    from sned.devices.machine import processor_name

    return Environment(f"onnxruntime {onnxruntime.__version__}", processor_name() or "unknown", threads)
