"""How long ops take on a device that nobody measured, from its profile and their shapes alone.

An op takes as long as the slowest of what it needs: arithmetic at the peak that its kernels reach, its activations from
the nearest cache that holds them, its weights from the nearest that holds those of the whole network; and a fixed time
to begin.

    t = max(padded MACs / (e · peak) + operations / vector rate, Σ bytes from level l / bandwidth of l) + t_launch

Reference: Williams, Waterman, Patterson, Roofline: an insightful visual performance model for multicore architectures,
2009; with a roof for each level of cache, as in Ilic, Pratas, Sousa, Cache-aware roofline model, 2014.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sned.devices.demand import Demand, demand
from sned.devices.figures import Figures
from sned.devices.kernels import FloatArray, Workload
from sned.devices.layout import Chosen, Family, Launch, kernel_times, launches

EFFICIENCY: Mapping[str, float] = {
    "blocked_conv": 0.8, "direct_conv": 0.5, "plain_conv": 0.6, "gemm": 0.6, "matmul": 0.4, "deconv": 0.4,
    "blocked_grouped": 0.7, "plain_grouped": 0.45, "blocked_depthwise": 0.3, "plain_depthwise": 0.04,
}  # fmt: skip
"""Share of the peak that kernels reach on shapes that suit them; assumed alike for every device."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """What `P` ops of one family wait for, microseconds, each `[P]`.

    Attributes:
        compute: arithmetic.
        activations: moving what enters and leaves.
        weights: fetching the weights.
        activation_level, weight_level: where these come from, indices into `Figures.levels`.
    """

    compute: FloatArray
    activations: FloatArray
    weights: FloatArray
    activation_level: FloatArray
    weight_level: FloatArray

    @property
    def work(self) -> FloatArray:
        """Time of the work, without what it takes to begin."""
        slowest: FloatArray = np.maximum(self.compute, self.activations + self.weights)
        return slowest


@dataclass(frozen=True, eq=False)
class Roofline:
    """Tells times from a profile: an estimate.

    Attributes:
        figures: of the device.
        block: channels in a block of the runtime's layout there; 1 where it has none.
    """

    figures: Figures
    block: int = 1

    @property
    def call_us(self) -> float:
        """What a run costs beside its ops."""
        return self.figures.call_us

    def microseconds(self, work: Workload, sizes: FloatArray) -> FloatArray:
        """Time every kernel of a network: `[kernels, P]` for `sizes[P, S]`."""
        footprint = self.footprint(work, sizes)

        def time(launch: Launch, chosen: Chosen) -> FloatArray:
            return self.launch_us(launch.family, launch.widths, footprint[chosen])

        return kernel_times(len(work.kernels), len(sizes), launches(work, sizes, self.block), time)

    def footprint(self, work: Workload, sizes: FloatArray) -> FloatArray:
        """Bytes of all weights that a run reads: by the next run they have pushed each other out."""
        return work.weights_of(sizes) * self.figures.bytes

    def launch_us(self, family: Family, widths: tuple[FloatArray, ...], footprint: FloatArray) -> FloatArray:
        """Microseconds of one op of a family at `P` widths, in networks with so many bytes of weights."""
        return self.bounds(
            demand(family, widths, self.figures.tile), family.recipe, footprint
        ).work + self._begin(family)

    def bounds(self, asked: Demand, recipe: str, footprint: FloatArray) -> Bounds:
        """What ops wait for."""
        f = self.figures
        compute = (
            asked.padded / (f.macs_per_us * EFFICIENCY.get(recipe, 1.0))
            + asked.operations / f.operations_per_us
        )
        moved = asked.moved * f.bytes
        near = np.searchsorted(f.sizes, moved)
        far = np.searchsorted(f.sizes, np.maximum(footprint, moved))
        return Bounds(
            compute, moved / f.bytes_per_us[near], asked.weights * f.bytes / f.bytes_per_us[far],
            near.astype(np.float64), far.astype(np.float64),
        )  # fmt: skip

    def binding(self, launch: Launch, footprint: FloatArray) -> tuple[str, Demand]:
        """Which hardware fact one op of the first plan waits for most, and what it asks for."""
        widths = tuple(width[:1] for width in launch.widths)
        asked = demand(launch.family, widths, self.figures.tile)
        b = self.bounds(asked, launch.family.recipe, footprint[:1])
        levels = self.figures.levels
        candidates = {
            "compute": float(b.compute[0]),
            levels[int(b.activation_level[0])]: float(b.activations[0]),
        }
        place = levels[int(b.weight_level[0])]
        candidates[place] = candidates.get(place, 0.0) + float(b.weights[0])
        name = max(candidates, key=lambda key: candidates[key])
        return ("overhead" if self._begin(launch.family) > b.work[0] else name), asked

    def _begin(self, family: Family) -> float:
        # A reshape is no work at all: runtimes pass the tensor on.
        return 0.25 * self.figures.launch_us if family.recipe == "reshape" else self.figures.launch_us
