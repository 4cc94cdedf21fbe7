"""What far-away weights cost: alone, over and over, an op finds its weights in the nearest cache; in a network not.

How far away they are hangs on the bytes that are read in between, and on time, since a core shares its caches with
what else runs on the machine. What an op loses then hangs on how it goes through its weights: for each such way, chains
of ops that are equal but for their weights are timed, from few weights to many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sned.devices.demand import demand, size_of
from sned.devices.kernels import FloatArray
from sned.devices.layout import Family
from sned.devices.probe import (
    AGED_MB,
    CHAIN_BYTES,
    FETCHING,
    LONG,
    Fetching,
    aged_chain,
    chain,
    chain_length,
)
from sned.devices.timer import Probe

BYTES = 4
"""Of a weight in float32, the only type that is timed."""

FOOTPRINTS_MB = (0.3, 0.8, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
AGES = (2, 4, 8, 16, 32, 64)
"""Yardsticks that run between two uses of the same weights: 0.3 to 10 ms on a server, several times that on a board."""


@dataclass(frozen=True, eq=False)
class Cold:
    """What it costs to fetch weights.

    Attributes:
        footprints: bytes of all weights of a network, ascending.
        stream_us: for each way to go through weights, microseconds that each byte takes longer at each footprint,
            never falling; those of convolutions with a window stand for a way that is missing.
        begin_us: for each way, microseconds until the first weights of an op are there, from as far as they get.
        ages_us: microseconds from one run of a network to the next, ascending.
        aged: of how many times as many bytes the weights would be as far away by then, at least 1.
    """

    footprints: FloatArray
    stream_us: Mapping[Fetching, FloatArray]
    begin_us: Mapping[Fetching, float]
    ages_us: FloatArray
    aged: FloatArray

    def reach(self, footprint: FloatArray, age_us: FloatArray) -> FloatArray:
        """How far away weights are: the bytes that are read before they are used again, what time adds among them.

        Args:
            footprint: `[P]`, bytes of all weights of a network.
            age_us: `[P]`, microseconds that it takes.
        """
        return np.asarray(footprint * (1 + _interpolated(age_us, self.ages_us, self.aged - 1)))

    def lost_us(self, far: FloatArray, own: FloatArray, fetching: Fetching) -> FloatArray:
        """Microseconds by which an op takes longer in a network than alone, over and over.

        Alone it finds its weights where the last run left them, as far as they fit.

        Args:
            far: `[P]`, how far away weights are in the network, from `reach`.
            own: `[P]`, bytes of the op's own.
            fetching: how it goes through them.
        """
        way: Fetching = fetching if fetching in self.stream_us else "window"
        each = self.stream_us[way]
        further = _interpolated(far, self.footprints, each) - _interpolated(own, self.footprints, each)
        further = np.maximum(further, 0.0)
        begin = self.begin_us.get(way, 0.0) * _shares(further, float(each[-1]))
        return np.where(own > 0, further * own + begin, 0.0)


NEAR = Cold(np.ones(1), {"window": np.zeros(1)}, {}, np.ones(1), np.ones(1))
"""Nothing is lost, however far away weights are."""


def _interpolated(at: FloatArray, places: FloatArray, values: FloatArray) -> FloatArray:
    """By the logarithm; nothing at all is nothing."""
    found = np.interp(np.log2(np.maximum(at, 1.0)), np.log2(places), values)
    return np.asarray(found * np.minimum(at / places[0], 1.0))


def cold_of(known: Mapping[str, float], empty: float, yardstick_us: float) -> Cold:
    """What the ops of chains lose, each and a byte, as their weights grow and as time goes by."""

    def lost(way: Fetching, footprints: Sequence[float], *, long: bool = False) -> FloatArray:
        """By each op of a chain."""
        counts = [chain_length(mb, long=long) for mb in footprints]
        took = np.array([known[chain_key(way, mb, long=long)] - empty for mb in footprints])
        return _lost(took / counts)

    chains = {way: lost(way, FOOTPRINTS_MB) for way in FETCHING}
    begin = {way: _begin(each[-1], lost(way, ends(), long=True)[-1]) for way, each in chains.items()}
    old = np.array([known[aged_key(age)] - known[aged_key(age, bare=True)] for age in AGES])
    near = known[chain_key("row", AGED_MB)] - empty
    return Cold(
        footprints=np.array(FOOTPRINTS_MB) * 1e6,
        stream_us={way: _without(begin[way], each) / CHAIN_BYTES for way, each in chains.items()},
        begin_us=begin,
        ages_us=np.array(AGES) * yardstick_us,
        aged=_as_far(_lost(np.array([near, *old]) / chain_length(AGED_MB))[1:], chains["row"]),
    )


def _begin(lost: float, longer: float) -> float:
    """What an op loses whatever its size: a longer one loses that and `LONG` times of the rest."""
    return float(np.clip((LONG * lost - longer) / (LONG - 1), 0.0, lost))


def _without(begin_us: float, lost: FloatArray) -> FloatArray:
    """What ops of a chain lose besides the time until they begin, which grows with all else."""
    return lost * (1 - begin_us / lost[-1]) if lost[-1] > 0 else lost


def _as_far(aged: FloatArray, lost: FloatArray) -> FloatArray:
    """As how many times as many bytes weights of `AGED_MB` are away that lose so much more with time."""
    places = np.log2(np.array(FOOTPRINTS_MB) / AGED_MB)
    near = np.interp(0.0, places, lost)
    return np.where(aged > 0, np.maximum(2 ** np.interp(near + aged, lost, places), 1.0), 1.0)


def probes(block: int) -> list[Probe]:
    """The chains that tell it."""
    chains = [(way, mb, False) for way in FETCHING for mb in FOOTPRINTS_MB]
    chains += [(way, mb, True) for way in FETCHING for mb in ends()]
    made = [
        Probe(chain_key(way, mb, long=long), partial(chain, way, mb, block, long=long))
        for way, mb, long in chains
    ]
    return made + [
        Probe(aged_key(age, bare=bare), partial(aged_chain, age, block, bare=bare))
        for age in AGES
        for bare in (True, False)
    ]


def ends() -> tuple[float, float]:
    """The fewest and the most weights that are timed."""
    return FOOTPRINTS_MB[0], FOOTPRINTS_MB[-1]


def chain_key(way: Fetching, megabytes: float, *, long: bool = False) -> str:
    """Name in a store of a chain of some way to go through weights."""
    return f"chain {'long ' if long else ''}{way} {megabytes}"


def aged_key(yardsticks: int, *, bare: bool = False) -> str:
    """Name in a store of an `aged_chain`."""
    return f"chain {'bare' if bare else 'aged'} {yardsticks}"


def _shares(parts: FloatArray, whole: float) -> FloatArray:
    """From 0 to 1; none of nothing."""
    return np.clip(parts / whole, 0.0, 1.0) if whole > 0 else np.zeros(len(parts))


def fetching(family: Family, uses: float) -> Fetching:
    """How an op goes through its weights, of which it `uses` each so often."""
    if uses < 2:
        return "row" if family.recipe == "gemm" else "place"
    if family.recipe == "gemm":
        return "rows"
    single = size_of(family, "kernel") == 1
    if family.recipe.startswith("plain") or family.recipe == "deconv":
        return "plain points" if single else "plain window"
    return "points" if single else "window"


HAVE_WEIGHTS = frozenset({
    "direct_conv", "blocked_conv", "plain_conv", "blocked_depthwise", "plain_depthwise", "blocked_grouped",
    "plain_grouped", "deconv", "gemm",
})  # fmt: skip
"""Recipes of the ops that read weights."""


def fetched_us(cold: Cold, family: Family, widths: Sequence[FloatArray], far: FloatArray) -> FloatArray:
    """Microseconds that an op of one that has weights loses at `P` widths, one `[P]` array an axis, from `far[P]`."""
    asked = demand(family, widths, 1)
    uses = float(np.max(asked.macs / np.maximum(asked.weights, 1.0)))
    return cold.lost_us(far, asked.weights * BYTES, fetching(family, uses))


def _lost(times: FloatArray) -> FloatArray:
    """What is lost against the smallest chain.

    A larger chain is never nearer, so what a larger one takes less is the disturbance of a smaller one.
    """
    undisturbed: FloatArray = np.minimum.accumulate(times[::-1])[::-1]
    lost: FloatArray = undisturbed - undisturbed[0]
    return lost
