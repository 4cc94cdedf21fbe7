"""The figures of a device that a cost model reckons with: those of its profile, and what is assumed for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sned.devices.kernels import FloatArray
from sned.devices.profile import Cores, Device
from sned.errors import DeviceError

BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "int8": 1}
"""Of a number, by its type."""

CLOCK_GHZ = {"phone": 2.0, "board": 1.5, "laptop": 3.0, "server": 2.5, "microcontroller": 0.1, "host": 2.5}
BANDWIDTH_GB_S = {
    "phone": 30.0,
    "board": 8.0,
    "laptop": 40.0,
    "server": 100.0,
    "microcontroller": 0.5,
    "host": 20.0,
}
SIMD_BITS = {"microcontroller": 32}
FMA_UNITS = 2
L1_BYTES, L2_BYTES = 32 << 10, 512 << 10
MEMORY_BYTES_A_CYCLE = 6.0
"""What one core can draw from main memory; a single core does not reach the bandwidth of the whole."""

LAUNCH_CYCLES, CALL_CYCLES, SYNCHRONISE_CYCLES = 4_000.0, 25_000.0, 6_000.0
"""What an op costs beside its work, what a run costs beside its ops, and what it takes to wait for other threads."""

MAC_PJ = {"float32": 4.6, "float16": 1.5, "int8": 0.23}
"""A multiplication and an addition at 45 nm. Reference: Horowitz, Computing's energy problem, ISSCC 2014."""

BYTE_PJ = {"L1": 2.5, "L2": 12.5, "L3": 12.5, "L4": 12.5, "L5": 12.5, "memory": 162.5}
"""32 KiB and 1 MiB of SRAM, and DRAM at its lower figure, for 64 bits. Reference: as `MAC_PJ`."""

_HALF_RATE = frozenset({"asimdhp", "avx512_fp16"})
_INT8_DOT = frozenset({"asimddp", "avx_vnni", "avx512_vnni"})


@dataclass(frozen=True, eq=False)
class Figures:
    """What a device can do with so many threads and one type of numbers; nothing is unknown here.

    Attributes:
        dtype: of weights and activations.
        threads: inside an op.
        macs_per_us: multiply-accumulates a microsecond, all threads together.
        operations_per_us: other vector operations on elements.
        tile: channels that kernels compute together.
        levels: names of the caches, nearest first, then "memory".
        sizes: `[L - 1]`, bytes of the caches that these threads can use.
        bytes_per_us: `[L]`, of each level.
        launch_us: what an op costs beside its work.
        call_us: what a run costs beside its ops.
        mac_pj: energy of a multiply-accumulate, picojoules.
        byte_pj: `[L]`, energy of moving a byte from each level.
        idle_w: watts that flow meanwhile; 0 where not known.
        energy_assumed: whether figures for 45 nm stand in for energies that the profile does not tell.
        assumed: a sentence for each figure that the profile does not tell.
    """

    dtype: str
    threads: int
    macs_per_us: float
    operations_per_us: float
    tile: int
    levels: tuple[str, ...]
    sizes: FloatArray
    bytes_per_us: FloatArray
    launch_us: float
    call_us: float
    mac_pj: float
    byte_pj: FloatArray
    idle_w: float
    energy_assumed: bool
    assumed: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of a number."""
        return BYTES[self.dtype]

    @property
    def near_bytes(self) -> float:
        """What the two nearest levels of cache hold, or the only one; 1 where there is none."""
        return float(self.sizes[min(1, len(self.sizes) - 1)]) if len(self.sizes) else 1.0


def figures(device: Device, *, threads: int = 1, dtype: str = "float32", block: int = 1) -> Figures:
    """Reckon what a device can do.

    Args:
        device: whose profile; what it does not tell is assumed, and said in `Figures.assumed`.
        threads: inside an op, on the fastest cores first.
        dtype: "float32", "float16" or "int8".
        block: channels in a block of the runtime's layout; 1 where it has none.

    Raises:
        DeviceError: `dtype` is not one of these.
    """
    if dtype not in BYTES:
        raise DeviceError(f"`dtype` must be one of {', '.join(BYTES)}, got {dtype!r}.")
    told = _Told(device)
    used = told.cores(threads)
    clock, bits = used[0].clock_ghz, used[0].simd_bits
    names, sizes = told.caches(threads)
    caches = sum(core.cycles_per_us * _cache_bandwidth(len(names), core.simd_bits) for core in used)
    mac_pj, byte_pj = told.mac_pj(dtype), told.byte_pj((*names, "memory"))
    return Figures(
        dtype=dtype,
        threads=threads,
        macs_per_us=sum(c.cycles_per_us * c.fma_units * _lanes(c, dtype) * told.rate(dtype, c.simd_bits) for c in used),
        operations_per_us=sum(core.cycles_per_us * _lanes(core, "float32") for core in used),
        tile=block if block > 1 else (2 * max(1, bits // 32) if bits > 32 else 1),
        levels=(*names, "memory"),
        sizes=sizes,
        bytes_per_us=np.append(caches, told.memory(sum(core.cycles_per_us for core in used))),
        launch_us=(LAUNCH_CYCLES + (SYNCHRONISE_CYCLES if threads > 1 else 0)) / clock / 1e3,
        call_us=CALL_CYCLES / clock / 1e3,
        mac_pj=mac_pj,
        byte_pj=byte_pj,
        idle_w=told.idle(),
        energy_assumed=told.energy_assumed,
        assumed=(*told.assumed, "kernels reach a fixed share of the peak, and an op begins after "
                 f"{LAUNCH_CYCLES:,.0f} cycles"),
    )  # fmt: skip


@dataclass(frozen=True)
class _Cores:
    """Cores of one kind that are used, nothing unknown."""

    count: int
    clock_ghz: float
    simd_bits: int
    fma_units: int

    @property
    def cycles_per_us(self) -> float:
        """Of all together."""
        return self.count * self.clock_ghz * 1e3


def _lanes(core: _Cores, dtype: str) -> int:
    """Numbers in a vector."""
    return max(1, core.simd_bits // (8 * BYTES[dtype]))


def _used(clusters: tuple[Cores, ...], threads: int) -> list[Cores]:
    """The fastest cores, as many as there are threads."""
    used, left = [], threads
    for cluster in clusters:
        if left > 0:
            used.append(cluster.model_copy(update={"count": min(left, cluster.count)}))
            left -= cluster.count
    return used


def _cache_bandwidth(levels: int, bits: int) -> FloatArray:
    """Bytes a cycle and core: two vectors from the first level, one from the second, half of one further out."""
    width = bits / 8
    return np.array([2 * width, width, *[min(width / 2, 16.0)] * 3])[:levels]


class _Told:
    """A profile that is asked; keeps account of what it did not know."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.assumed: list[str] = []
        self.energy_assumed = False

    def cores(self, threads: int) -> list[_Cores]:
        """The fastest cores, as many as there are threads, without gaps."""
        device = self._device
        if device.clusters is None:
            self._say("its cores", "one")
        used = _used(device.clusters or (Cores(count=1),), threads)
        clock, bits = CLOCK_GHZ[device.kind], SIMD_BITS.get(device.kind, 128)
        units = 1 if device.kind == "microcontroller" else FMA_UNITS
        for what, given, usual in (
            ("the clock of its cores", [core.clock_ghz for core in used], f"{clock:g} GHz"),
            ("the width of its vectors", [core.simd_bits for core in used], f"{bits} bits"),
            (
                "how many vectors a core multiplies and adds in a cycle",
                [core.fma_units for core in used],
                f"{units}",
            ),
        ):
            without = [
                core.name or "others" for core, figure in zip(used, given, strict=True) if figure is None
            ]
            if without:
                whose = f" ({', '.join(dict.fromkeys(without))})" if len(without) < len(used) else ""
                self._say(f"{what}{whose}", usual)
        return [
            _Cores(c.count, c.clock_ghz or clock, c.simd_bits or bits, c.fma_units or units) for c in used
        ]

    def rate(self, dtype: str, bits: int) -> float:
        """How much of the gain from narrower numbers arithmetic has: widening them first takes all of it away."""
        known = {"float32": None, "float16": _HALF_RATE, "int8": _INT8_DOT}[dtype]
        if known is None or bits <= 32:
            return 1.0 if known is None else BYTES[dtype] / 4
        if self._device.simd is None:
            self._say(f"whether its vectors compute in {dtype}", "no")
        return 1.0 if known & set(self._device.simd or ()) else BYTES[dtype] / 4

    def caches(self, threads: int) -> tuple[tuple[str, ...], FloatArray]:
        """Names and usable bytes of the caches; private ones count once a thread."""
        device = self._device
        known = {cache.level: cache for cache in device.caches or ()}
        sizes = {
            level: cache.size_bytes * min(threads, max(1, threads // (cache.shared_by or 1)))
            for level, cache in known.items()
        }
        if device.kind != "microcontroller":
            for level, size in ((1, L1_BYTES), (2, L2_BYTES)):
                if level not in sizes:
                    sizes[level] = size * threads
                    self._say(f"its level-{level} cache", f"{size >> 10} KiB a core")
        levels = sorted(sizes)
        rising = np.maximum.accumulate(np.array([sizes[level] for level in levels], np.float64))
        return tuple(f"L{level}" for level in levels), rising

    def memory(self, cycles_per_us: float) -> float:
        """Bytes a microsecond from main memory, by cores with so many cycles in all."""
        given = self._device.memory_bandwidth_gb_s
        if given is None:
            given = BANDWIDTH_GB_S[self._device.kind]
            self._say("its memory bandwidth", f"{given:g} GB/s")
        reached = MEMORY_BYTES_A_CYCLE * cycles_per_us
        if reached < given * 1e3:
            self.assumed.append(
                f"a core draws {MEMORY_BYTES_A_CYCLE:g} bytes a cycle from memory at most, {reached / 1e3:.3g} of its "
                f"{given:g} GB/s"
            )
        return min(given * 1e3, reached)

    def mac_pj(self, dtype: str) -> float:
        """Energy of a multiply-accumulate."""
        energy = self._device.energy
        given = None if energy is None else {str(k): v for k, v in energy.mac_pj.items()}.get(dtype)
        if given is None:
            self.energy_assumed = True
            self._say("energy of an operation", f"{MAC_PJ[dtype]:g} pJ, a figure for 45 nm (Horowitz 2014)")
        return given or MAC_PJ[dtype]

    def byte_pj(self, levels: tuple[str, ...]) -> FloatArray:
        """Energy of a byte from each level."""
        energy = self._device.energy
        given = {} if energy is None else {str(k): v for k, v in energy.byte_pj.items()}
        if any(level not in given for level in levels):
            self.energy_assumed = True
            self._say("energy of moving a byte", "figures for 45 nm (Horowitz 2014)")
        return np.array([given.get(level, BYTE_PJ[level]) for level in levels])

    def idle(self) -> float:
        """Watts that flow whatever runs."""
        if self._device.idle_power_w is None:
            self._say("power at idle", "none")
        return self._device.idle_power_w or 0.0

    def _say(self, what: str, value: str) -> None:
        sentence = f"{what} is not known, {value} assumed"
        if sentence not in self.assumed:
            self.assumed.append(sentence)
