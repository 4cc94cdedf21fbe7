"""What far-away weights cost: alone, over and over, an op finds its weights in the nearest cache; in a network not.

Chains of equal convolutions whose weights differ are timed, ever longer ones; what each op takes longer than in the
shortest is put down to the footprint of all weights. A product of rows goes through its weights in one line, and some
processors fetch them while they work on those before: a chain of such products shows how much of that stays hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sned.devices.kernels import FloatArray
from sned.devices.probe import CHAIN_BYTES, CHAIN_ROWS, chain_length

BYTES = 4
"""Of a weight in float32, the only type that is timed."""

FOOTPRINTS_MB = (0.3, 0.6, 1.2, 1.8, 2.4, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, eq=False)
class Cold:
    """What it costs to fetch weights, by how many bytes of them there are in all.

    Attributes:
        footprints: bytes, ascending.
        begin_us: microseconds an op, until the first of its weights is there.
        stream_us: microseconds for each byte after that.
        exposed: what is left of those in a product of `CHAIN_ROWS` rows and more, from 0 to 1.
    """

    footprints: FloatArray
    begin_us: FloatArray
    stream_us: FloatArray
    exposed: float = 1.0

    def per_op(self, footprint: FloatArray) -> FloatArray:
        """Interpolate `begin_us`."""
        return self._at(footprint, self.begin_us)

    def per_byte(self, footprint: FloatArray) -> FloatArray:
        """Interpolate `stream_us`."""
        return self._at(footprint, self.stream_us)

    def _at(self, footprint: FloatArray, values: FloatArray) -> FloatArray:
        found: FloatArray = np.interp(np.log2(np.maximum(footprint, 1.0)), np.log2(self.footprints), values)
        return found

    def lost_us(self, footprint: FloatArray, own: FloatArray, rows: FloatArray) -> FloatArray:
        """Microseconds by which an op takes longer in a network than alone, over and over.

        Alone it finds its weights where the last run left them, as far as they fit; in a network they are as
        far away as all weights together reach.

        Args:
            footprint: `[P]`, bytes of all weights of the network.
            own: `[P]`, bytes of the op's own.
            rows: `[P]`, how many it multiplies by its weights; 1 for other ops.
        """
        lost = self.per_op(footprint) - self.per_op(own)
        seen = np.interp(np.log2(np.maximum(rows, 1.0)), [0.0, np.log2(CHAIN_ROWS)], [1.0, self.exposed])
        lost = lost + (self.per_byte(footprint) - self.per_byte(own)) * own * seen
        return np.where(own > 0, np.maximum(lost, 0.0), 0.0)


def cold_of(footprints: Sequence[float], known: Mapping[str, float], empty: float) -> Cold:
    """What chains of convolutions lose, an op and a byte, as their weights grow."""
    counts = np.array([chain_length(mb) for mb in footprints])
    single = np.array([known[f"chain {mb}"] - empty for mb in footprints]) / counts
    paired = np.array([known[f"paired chain {mb}"] - empty for mb in footprints]) / counts
    begin = _lost(paired - single)
    stream = np.maximum(_lost(single) - begin, 0.0) / CHAIN_BYTES
    small, large = ((known[f"chain of rows {footprints[at]}"] - empty) / counts[at] for at in (0, -1))
    exposed = _share(large - small - begin[-1], stream[-1] * CHAIN_BYTES)
    return Cold(np.array(footprints) * 1e6, begin, stream, exposed)


def _share(part: float, whole: float) -> float:
    """All of it where the whole is nothing."""
    return float(np.clip(part / whole, 0.0, 1.0)) if whole > 0 else 1.0


def _lost(times: FloatArray) -> FloatArray:
    """What is lost against the smallest chain.

    A larger chain is never nearer, so what a larger one takes less is the disturbance of a smaller one.
    """
    undisturbed: FloatArray = np.minimum.accumulate(times[::-1])[::-1]
    lost: FloatArray = undisturbed - undisturbed[0]
    return lost
