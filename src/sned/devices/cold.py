"""What far-away weights cost: alone, over and over, an op finds its weights in the nearest cache; in a network not.

How far away they are is a share: none in the shortest of several chains, whose ops are equal but for their weights,
all in the longest. It grows with the bytes that are read in between, and with time, since a core shares its caches with
what else runs on the machine. What an op loses with all of it hangs on how it goes through its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sned.devices.kernels import FloatArray, Static
from sned.devices.probe import (
    AGED_MB,
    CHAIN_BYTES,
    FETCHING,
    SHORT,
    Fetching,
    aged_chain,
    chain,
    chain_length,
)
from sned.devices.timer import Probe

BYTES = 4
"""Of a weight in float32, the only type that is timed."""

FOOTPRINTS_MB = (0.3, 0.6, 1.2, 2.4, 4.0, 8.0, 16.0, 32.0)
AGES = (2, 4, 8, 16, 32, 64)
"""Yardsticks that run between two uses of the same weights: 0.3 to 10 ms on a server, several times that on a board."""


@dataclass(frozen=True, eq=False)
class Cold:
    """What it costs to fetch weights.

    Attributes:
        footprints: bytes of all weights of a network, ascending.
        far: how far away these are, from 0 to 1.
        ages_us: microseconds from one run of a network to the next, ascending.
        aged: how far away weights are by then, however few.
        begin_us: microseconds until the first weights of an op are there, from as far as they get.
        stream_us: microseconds for each byte after that, for each way to go through them; that of convolutions with a
            window stands for a way that is missing.
    """

    footprints: FloatArray
    far: FloatArray
    ages_us: FloatArray
    aged: FloatArray
    begin_us: float
    stream_us: Mapping[Fetching, float]

    def reach(self, footprint: FloatArray, age_us: FloatArray) -> FloatArray:
        """How far away weights are, from 0 to 1: what bytes or time say, whichever is more.

        Args:
            footprint: `[P]`, bytes of all weights of a network.
            age_us: `[P]`, microseconds that it takes.
        """
        by_bytes = _interpolated(footprint, self.footprints, self.far)
        return np.maximum(by_bytes, _interpolated(age_us, self.ages_us, self.aged))

    def lost_us(self, far: FloatArray, own: FloatArray, fetching: Fetching) -> FloatArray:
        """Microseconds by which an op takes longer in a network than alone, over and over.

        Alone it finds its weights where the last run left them, as far as they fit.

        Args:
            far: `[P]`, how far away weights are in the network, from `reach`.
            own: `[P]`, bytes of the op's own.
            fetching: how it goes through them.
        """
        further = np.maximum(far - _interpolated(own, self.footprints, self.far), 0.0)
        all_of_it = self.begin_us + self.stream_us.get(fetching, self.stream_us["window"]) * own
        return np.where(own > 0, further * all_of_it, 0.0)


NEAR = Cold(np.ones(1), np.zeros(1), np.ones(1), np.zeros(1), 0.0, {"window": 0.0})
"""Nothing is lost, however far away weights are."""


def _interpolated(at: FloatArray, places: FloatArray, values: FloatArray) -> FloatArray:
    """By the logarithm; nothing at all is nothing."""
    found = np.interp(np.log2(np.maximum(at, 1.0)), np.log2(places), values)
    return np.asarray(found * np.minimum(at / places[0], 1.0))


def cold_of(known: Mapping[str, float], empty: float, yardstick_us: float) -> Cold:
    """What the ops of chains lose, each and a byte, as their weights grow and as time goes by."""

    def lost(what: str, footprints: Sequence[float]) -> FloatArray:
        """By each op of a chain."""
        counts = [chain_length(mb, short=what == SHORTER) for mb in footprints]
        took = np.array([known[chain_key(what, mb)] - empty for mb in footprints])
        return _lost(took / counts)

    whole = {what: float(lost(what, ends())[-1]) for what in (*FETCHING, SHORTER)}
    # A longer op loses `begin` and what all its bytes cost, a shorter one `begin` and a part of that.
    begin = max(SHORT * whole[SHORTER] - whole["window"], 0.0) / (SHORT - 1)
    old = np.array([known[aged_key(age)] - known[aged_key(age, bare=True)] for age in AGES])
    near = known[chain_key("row", AGED_MB)] - empty
    aged = _lost(np.array([near, *old]) / chain_length(AGED_MB))[1:]
    return Cold(
        footprints=np.array(FOOTPRINTS_MB) * 1e6,
        far=_shares(lost("row", FOOTPRINTS_MB), whole["row"]),
        ages_us=np.array(AGES) * yardstick_us,
        aged=_shares(aged, whole["row"]),
        begin_us=begin,
        stream_us={way: max(whole[way] - begin, 0.0) / CHAIN_BYTES for way in FETCHING},
    )


def probes(block: int) -> list[Probe]:
    """The chains that tell it."""
    made = [Probe(chain_key("row", mb), partial(chain, "row", mb, block)) for mb in FOOTPRINTS_MB]
    for mb in ends():
        made += [
            Probe(chain_key(way, mb), partial(chain, way, mb, block)) for way in FETCHING if way != "row"
        ]
        made.append(Probe(chain_key(SHORTER, mb), partial(chain, "window", mb, block, short=True)))
    return made + [
        Probe(aged_key(age, bare=bare), partial(aged_chain, age, block, bare=bare))
        for age in AGES
        for bare in (True, False)
    ]


SHORTER = "shorter"


def ends() -> tuple[float, float]:
    """The fewest and the most weights that are timed."""
    return FOOTPRINTS_MB[0], FOOTPRINTS_MB[-1]


def chain_key(what: str, megabytes: float) -> str:
    """Name in a store of a chain of some way to go through weights, or of the `SHORTER` ops."""
    return f"chain {what} {megabytes}"


def aged_key(yardsticks: int, *, bare: bool = False) -> str:
    """Name in a store of an `aged_chain`."""
    return f"chain {'bare' if bare else 'aged'} {yardsticks}"


def _shares(parts: FloatArray, whole: float) -> FloatArray:
    """From 0 to 1; none of nothing."""
    return np.clip(parts / whole, 0.0, 1.0) if whole > 0 else np.zeros(len(parts))


def fetching(kind: str, statics: Mapping[str, Static], uses: float) -> Fetching:
    """How a kernel, or an op of a recipe, goes through its weights, of which it `uses` each so often."""
    if uses < 2:
        return "row"
    if kind in ("linear", "gemm"):
        return "rows"
    window = statics.get("kernel")
    return "points" if isinstance(window, tuple) and set(window) == {1} else "window"


def _lost(times: FloatArray) -> FloatArray:
    """What is lost against the smallest chain.

    A larger chain is never nearer, so what a larger one takes less is the disturbance of a smaller one.
    """
    undisturbed: FloatArray = np.minimum.accumulate(times[::-1])[::-1]
    lost: FloatArray = undisturbed - undisturbed[0]
    return lost
