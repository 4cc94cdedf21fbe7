"""What a plan would cost on a device, told from shapes alone and for many plans at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from sned.devices.host import OpTables, Wanted, measure
from sned.devices.kernel_rules import workload
from sned.devices.kernels import FloatArray, Kernel, Workload
from sned.devices.layout import Launch, launches
from sned.devices.probe import block_size, environment
from sned.devices.profile import Device
from sned.devices.store import Store
from sned.errors import DeviceError, PlanError
from sned.graph.ir import Graph
from sned.progress import SILENT, Progress

BYTES = 4
"""Of a weight in float32, the only type that is costed today."""

CHUNK = 4096
"""Plans evaluated at a time: the arrays in between then stay in the cache."""


@dataclass(frozen=True, eq=False)
class Costs:
    """What `P` plans cost; every field is `[P]`, and nan where the device has no model of it.

    Attributes:
        latency_ms: of one run at the batch size asked for.
        macs: multiply-accumulates of one run.
        parameters: elements of all parameters; buffers do not count.
        size_bytes: of an exported file, BatchNorms folded; of its weights only, unless `anchored`.
        energy_mj: of one run.
        peak_memory_bytes: of weights and activations together.
    """

    latency_ms: FloatArray
    macs: FloatArray
    parameters: FloatArray
    size_bytes: FloatArray
    energy_mj: FloatArray
    peak_memory_bytes: FloatArray

    def at(self, plan: int) -> dict[str, float]:
        """The figures of one plan by name, without those that are not modelled."""
        figures = {name: float(values[plan]) for name, values in vars(self).items()}
        return {name: value for name, value in figures.items() if not np.isnan(value)}


@dataclass(frozen=True)
class LayerCost:
    """What one step of the runtime costs.

    Attributes:
        module: path of the module that asked for it; "" for what no module did.
        kind: what it does, such as "conv" or "pool"; "call" for what a run costs besides its ops.
        latency_ms: reorders that it makes necessary included.
        macs: multiply-accumulates.
        parameters: elements of the parameters that it is the first to read.
    """

    module: str
    kind: str
    latency_ms: float
    macs: float
    parameters: float


class CostModel(Protocol):
    """Tells what plans cost on one device, at one batch size and number of threads."""

    def evaluate(self, counts: FloatArray) -> Costs:
        """Cost `P` plans that keep `counts[P, G]` units of the graph's groups."""
        ...

    def layers(self, counts: FloatArray) -> list[LayerCost]:
        """Cost one plan, `counts[G]`, step by step in running order; the latencies add up to the plan's."""
        ...


@dataclass(frozen=True, eq=False)
class MeasuredCost:
    """A `CostModel` that adds up measured times of single ops.

    Attributes:
        work: what the network makes the runtime do.
        tables: what that takes.
        scale: factor on every latency, 1 unless `anchored`.
        file_bytes: what a file holds besides weights, 0 unless `anchored`.
    """

    work: Workload
    tables: OpTables
    scale: float = 1.0
    file_bytes: float = 0.0

    def evaluate(self, counts: FloatArray) -> Costs:
        """Cost `P` plans that keep `counts[P, G]` units of the graph's groups.

        Raises:
            PlanError: `counts` is not of that shape, or a group keeps more than it has or less than it may.
        """
        plans = self._checked(np.atleast_2d(np.asarray(counts, dtype=np.float64)))
        parts = [self._evaluate(plans[i : i + CHUNK]) for i in range(0, max(1, len(plans)), CHUNK)]
        names = vars(parts[0])
        return Costs(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in names})

    def layers(self, counts: FloatArray) -> list[LayerCost]:
        """Cost one plan, `counts[G]`, step by step in running order; the latencies add up to the plan's."""
        sizes = self.work.sizes_of(self._checked(np.asarray(counts, dtype=np.float64)[None]))
        latency = np.zeros(len(self.work.kernels))
        for launch in launches(self.work, sizes, self.tables.block):
            if launch.where[0]:
                latency[launch.kernel] += self._microseconds(launch)[0]
        latency += [float(cold[0]) for cold in self._cold(sizes)]
        seen: set[str] = set()
        made = [LayerCost("", "call", self.tables.call_us * self.scale / 1e3, 0.0, 0.0)]
        for kernel, microseconds in zip(self.work.kernels, latency, strict=True):
            first = [
                n for n in dict.fromkeys(kernel.parameters) if n in self.work.parameters and n not in seen
            ]
            seen.update(first)
            parameters = sum(float(self.work.parameters[name].at(sizes)[0]) for name in first)
            macs = float(kernel.macs.at(sizes)[0])
            made.append(
                LayerCost(
                    kernel.module, _kind(kernel), float(microseconds) * self.scale / 1e3, macs, parameters
                )
            )
        return made

    def anchored(
        self, counts: FloatArray, latency_ms: float, *, size_bytes: float | None = None
    ) -> MeasuredCost:
        """The same model, so that it tells of one plan what was measured of it.

        Args:
            counts: `[G]`, units kept in each group, usually all.
            latency_ms: measured, above zero; all latencies are scaled alike.
            size_bytes: of the exported file; what it holds besides weights counts for every plan.
        """
        predicted = self.evaluate(counts).at(0)
        beside = 0.0 if size_bytes is None else size_bytes - predicted["size_bytes"]
        scale = self.scale * latency_ms / predicted["latency_ms"]
        return replace(self, scale=scale, file_bytes=max(0.0, self.file_bytes + beside))

    def _checked(self, counts: FloatArray) -> FloatArray:
        sizes, least = np.array(self.work.group_sizes), np.array(self.work.group_least)
        if counts.ndim != 2 or counts.shape[1] != len(sizes):
            raise PlanError(
                f"`counts` must have a column for each of the {len(sizes)} groups, got shape {counts.shape}."
            )
        if np.any(counts > sizes) or np.any(counts < least):
            plan, group = np.argwhere((counts > sizes) | (counts < least))[0]
            raise PlanError(
                f"`counts` must lie between {least[group]} and {sizes[group]} in group {group}, "
                f"got {counts[plan, group]:g} in plan {plan}."
            )
        return counts

    def _evaluate(self, counts: FloatArray) -> Costs:
        sizes = self.work.sizes_of(counts)
        latency = np.full(len(counts), self.tables.call_us)
        for launch in launches(self.work, sizes, self.tables.block):
            if launch.where.all():
                latency += self._microseconds(launch)
            elif launch.where.any():
                chosen = np.flatnonzero(launch.where)
                widths = tuple(width[chosen] for width in launch.widths)
                latency[chosen] += self.tables.microseconds(launch.family, widths)
        for cold in self._cold(sizes):
            latency += cold
        unknown = np.full(len(counts), np.nan)
        stored = sum((extent.at(sizes) for extent in self.work.stored), np.zeros(len(counts)))
        return Costs(
            latency_ms=latency * self.scale / 1e3,
            macs=sum((kernel.macs.at(sizes) for kernel in self.work.kernels), np.zeros(len(counts))),
            parameters=sum(
                (extent.at(sizes) for extent in self.work.parameters.values()), np.zeros(len(counts))
            ),
            size_bytes=stored * BYTES + self.file_bytes,
            energy_mj=unknown,
            peak_memory_bytes=unknown,
        )

    def _microseconds(self, launch: Launch) -> FloatArray:
        return self.tables.microseconds(launch.family, launch.widths)

    def _cold(self, sizes: FloatArray) -> list[FloatArray]:
        """What each kernel loses because the weights of the others push its own out of the cache."""
        held = [kernel.weights.at(sizes) * BYTES for kernel in self.work.kernels]
        total = np.sum(held, axis=0) if held else np.zeros(len(sizes))
        return [self.tables.cold_us(total, own) for own in held]


def _kind(kernel: Kernel) -> str:
    return kernel.op.lower() if kernel.kind in ("elementwise", "copy", "rows", "reduce") else kernel.kind


def cost_model(
    graph: Graph,
    device: Device,
    *,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 20.0,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> MeasuredCost:
    """Make the cost model of a network on a device; on one that can be measured, time the ops that it needs.

    Args:
        graph: the traced network.
        device: from `find_device`.
        batch: inputs at once, at least 1.
        threads: inside an op, at least 1 and at most the cores of the device.
        seconds: how long to measure at most.
        store: where measured times are kept; by default the user's cache folder.
        progress: told of each op measured.

    Raises:
        DeviceError: the device cannot be measured from here, or has fewer cores.
    """
    if not device.measurable:
        raise DeviceError(
            f"Costs can be told for devices that sned can measure, got '{device.name}', which it cannot. "
            "Only 'host' works today: use `device=\"host\"` and run sned on the machine that you mean."
        )
    if batch < 1:
        raise DeviceError(f"`batch` must be at least 1, got {batch}.")
    if threads < 1 or (device.cores is not None and threads > device.cores):
        raise DeviceError(
            f"`threads` must lie between 1 and the {device.cores} cores of '{device.name}', got {threads}."
        )
    work = workload(graph, batch)
    block = block_size()
    edges = np.concatenate([work.least, work.dense])
    wanted = [_wanted(launch) for launch in launches(work, edges, block)]
    weights = float(sum(kernel.weights.at(work.dense)[0] for kernel in work.kernels)) * BYTES
    store = Store.open(environment(threads)) if store is None else store
    tables = measure(wanted, block, store, seconds=seconds, largest_footprint=weights, progress=progress)
    return MeasuredCost(work, tables)


def _wanted(launch: Launch) -> Wanted:
    return Wanted(launch.family, *(tuple(_edge(launch.widths, edge)) for edge in (0, 1)))


def _edge(widths: Sequence[FloatArray], edge: int) -> list[float]:
    return [float(width[edge]) for width in widths]
