"""What a plan would cost on a device, told from shapes alone and for many plans at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, Protocol

import numpy as np

from sned.devices.budget import AMOUNTS, ON
from sned.devices.figures import Figures
from sned.devices.footprint import elements, energy_mj, peak_elements
from sned.devices.host import OpTables
from sned.devices.kernels import FloatArray, Kernel, Workload
from sned.devices.layout import launches
from sned.devices.roofline import Roofline
from sned.errors import PlanError

CHUNK = 4096
"""Plans evaluated at a time: the arrays in between then stay in the cache."""

STORES: Mapping[str, str] = {"peak_memory_bytes": "RAM", "size_bytes": "flash"}
"""Where a device keeps what may exceed its `capacity`."""

Basis = Literal["measured", "calibrated", "estimated"]
"""What latencies stand on: the network's own ops timed, a calibration of the device, or its profile alone."""


@dataclass(frozen=True, eq=False)
class Costs:
    """What `P` plans cost; every field is `[P]`, and nan where the device has no model of it or nobody asked.

    Attributes:
        latency_ms: of one run at the batch size asked for.
        macs: multiply-accumulates of one run.
        parameters: elements of all parameters; buffers do not count.
        size_bytes: of an exported file, BatchNorms folded; of its weights only, unless `anchored`.
        energy_mj: of one run.
        peak_memory_bytes: of activations, when most are held at once; weights are not among them.
        members: of a set of devices, what each costs by name; the fields above are then the most on any.
    """

    latency_ms: FloatArray
    macs: FloatArray
    parameters: FloatArray
    size_bytes: FloatArray
    energy_mj: FloatArray
    peak_memory_bytes: FloatArray
    members: Mapping[str, Costs] = field(default_factory=dict)

    def columns(self) -> dict[str, FloatArray]:
        """The fields by name, and those of each member of a set as "latency_ms@pixel-9"."""
        own = {name: values for name, values in vars(self).items() if name != "members"}
        for device, costs in self.members.items():
            own |= {f"{name}{ON}{device}": values for name, values in costs.columns().items()}
        return own

    def at(self, plan: int) -> dict[str, float]:
        """The figures of one plan by name, without those that are not modelled."""
        figures = {name: float(values[plan]) for name, values in self.columns().items()}
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
        bound: what of the hardware it waits for: "compute", a level of cache, "memory", or "overhead" (it has so
            little to do that beginning takes longest). By the device's profile, wherever the latency comes from.
        bytes_moved: weights and activations.
    """

    module: str
    kind: str
    latency_ms: float
    macs: float
    parameters: float
    bound: str = ""
    bytes_moved: float = 0.0


class CostModel(Protocol):
    """Tells what plans cost on one device, at one batch size and number of threads."""

    def evaluate(self, counts: FloatArray, of: Collection[str] | None = None) -> Costs:
        """Cost `P` plans that keep `counts[P, G]` units of the graph's groups; only the columns `of`, if given."""
        ...

    def layers(self, counts: FloatArray) -> list[LayerCost]:
        """Cost one plan, `counts[G]`, step by step in running order; the latencies add up to the plan's."""
        ...

    @property
    def capacity(self) -> Mapping[str, float]:
        """The limits that a plan must keep to run at all, by the name of the cost."""
        ...


@dataclass(frozen=True, eq=False)
class Cost:
    """What plans of a network cost on one device.

    Attributes:
        work: what the network makes the runtime do.
        roofline: what the device's profile tells; energy, memory and what binds come from here always.
        tables: times of ops, where these were measured or calibrated; None: latencies are estimates from the profile.
        basis: what latencies stand on.
        device: name of the device.
        scale: factor on every latency: 1, unless `anchored` or calibrated on a machine that is slower today.
        file_bytes: what a file holds besides weights, 0 unless `anchored`.
        capacity: limits that any plan must keep to run there at all, by the name of the cost.
        notes: what the user ought to know of where the figures come from.
    """

    work: Workload
    roofline: Roofline
    tables: OpTables | None = None
    basis: Basis = "estimated"
    device: str = "host"
    scale: float = 1.0
    file_bytes: float = 0.0
    capacity: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> Figures:
        """The figures of the device that are reckoned with."""
        return self.roofline.figures

    @property
    def origin(self) -> str:
        """In a few words, how latencies were obtained."""
        return {
            "measured": "from ops timed on this machine",
            "calibrated": "from a calibration of the device",
            "estimated": "an estimate from the device's data sheet",
        }[self.basis]

    @property
    def energy_origin(self) -> str:
        """In a few words, what energies stand on."""
        said = "an estimate from the device's data sheet"
        return f"{said}, and figures for 45 nm where it has none" if self.figures.energy_assumed else said

    @property
    def assumed(self) -> tuple[str, ...]:
        """A sentence for each figure that was assumed because the profile does not tell it."""
        return self.figures.assumed

    def exceeded(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """A sentence for each of the figures of a plan (`Costs.at`) that the device cannot hold."""
        return tuple(
            f"{name} is {figures[name]:,.0f}, and the {STORES[name]} of '{self.device}' holds {most:,.0f}: the network "
            "does not run there as it is. Prune it until it fits, give it a smaller input, or choose another device."
            for name, most in self.capacity.items()
            if figures[name] > most
        )

    def evaluate(self, counts: FloatArray, of: Collection[str] | None = None) -> Costs:
        """Cost `P` plans that keep `counts[P, G]` units of the graph's groups.

        Args:
            counts: units kept, `[P, G]` or `[G]`.
            of: names of columns (`Costs.columns`) to work out, to save time: latencies take longest by far. All when
                None.

        Raises:
            PlanError: `counts` is not of that shape, or a group keeps more than it has or less than it may.
        """
        plans = self._checked(np.atleast_2d(np.asarray(counts, dtype=np.float64)))
        asked = _fields(of)
        parts = [self._evaluate(plans[i : i + CHUNK], asked) for i in range(0, max(1, len(plans)), CHUNK)]
        names = parts[0].columns()
        return _costs({name: np.concatenate([part.columns()[name] for part in parts]) for name in names})

    def layers(self, counts: FloatArray) -> list[LayerCost]:
        """Cost one plan, `counts[G]`, step by step in running order; the latencies add up to the plan's."""
        sizes = self.work.sizes_of(self._checked(np.asarray(counts, dtype=np.float64)[None]))
        latency = self._times(sizes)[:, 0]
        bounds, moved = self._bounds(sizes)
        seen: set[str] = set()
        made = [LayerCost("", "call", self._call_us * self.scale / 1e3, 0.0, 0.0, "overhead")]
        for index, kernel in enumerate(self.work.kernels):
            if kernel.along:
                continue
            first = [
                n for n in dict.fromkeys(kernel.parameters) if n in self.work.parameters and n not in seen
            ]
            seen.update(first)
            made.append(
                LayerCost(
                    module=kernel.module,
                    kind=_kind(kernel),
                    latency_ms=float(latency[index]) * self.scale / 1e3,
                    macs=float(kernel.macs.at(sizes)[0]),
                    parameters=sum(float(self.work.parameters[name].at(sizes)[0]) for name in first),
                    bound=bounds[index],
                    bytes_moved=float(moved[index]),
                )
            )
        return made

    def anchored(
        self, counts: FloatArray, latency_ms: float | None = None, *, size_bytes: float | None = None
    ) -> Cost:
        """The same model, so that it tells of one plan what was measured of it.

        Args:
            counts: `[G]`, units kept in each group, usually all.
            latency_ms: measured, above zero; all latencies are scaled alike. None: they stay as they are.
            size_bytes: of the exported file; what it holds besides weights counts for every plan.
        """
        predicted = self.evaluate(counts).at(0)
        beside = 0.0 if size_bytes is None else size_bytes - predicted["size_bytes"]
        scale = self.scale if latency_ms is None else self.scale * latency_ms / predicted["latency_ms"]
        return replace(self, scale=scale, file_bytes=max(0.0, self.file_bytes + beside))

    def anchored_like(self, other: Cost | FleetCost) -> Cost:
        """The same model, scaled as `other` is: a model of the same device, of a network with more layers."""
        anchor = next(each for each in other.costs if each.device == self.device)
        return replace(self, scale=anchor.scale, file_bytes=anchor.file_bytes)

    @property
    def costs(self) -> tuple[Cost, ...]:
        """The models of the devices that this one speaks of: itself."""
        return (self,)

    @property
    def slowest(self) -> Cost:
        """The model whose layers are told: itself."""
        return self

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

    def _evaluate(self, counts: FloatArray, asked: Collection[str]) -> Costs:
        work = self.work
        sizes = work.sizes_of(counts)
        nothing, unknown = np.zeros(len(counts)), np.full(len(counts), np.nan)

        @cache
        def values() -> Sequence[FloatArray]:
            return elements(work, sizes)

        @cache
        def latency() -> FloatArray:
            return np.asarray((self._times(sizes).sum(axis=0) + self._call_us) * self.scale / 1e3)

        def stored() -> FloatArray:
            return sum((extent.at(sizes) for extent in work.stored), nothing)

        told: dict[str, Callable[[], FloatArray]] = {
            "latency_ms": latency,
            "macs": lambda: sum((k.macs.at(sizes) for k in work.kernels if k.macs.factor), nothing),
            "parameters": lambda: sum((extent.at(sizes) for extent in work.parameters.values()), nothing),
            "size_bytes": lambda: stored() * self.figures.bytes + self.file_bytes,
            "energy_mj": lambda: energy_mj(work, sizes, values(), self.figures, latency()),
            "peak_memory_bytes": lambda: peak_elements(work, values()) * self.figures.bytes,
        }
        return _costs({name: tell() if name in asked else unknown for name, tell in told.items()})

    @property
    def _call_us(self) -> float:
        return self.roofline.call_us if self.tables is None else self.tables.call_us

    def _times(self, sizes: FloatArray) -> FloatArray:
        """Microseconds of every kernel, `[kernels, P]`."""
        source = self.roofline if self.tables is None else self.tables
        return source.microseconds(self.work, sizes)

    def _bounds(self, sizes: FloatArray) -> tuple[list[str], FloatArray]:
        """For the first plan, what each kernel waits for most, and the bytes that it moves."""
        footprint = self.roofline.footprint(self.work, sizes)
        longest = np.zeros(len(self.work.kernels))
        bounds, moved = [""] * len(longest), np.zeros(len(longest))
        for launch in launches(self.work, sizes, self.roofline.block):
            if not launch.where[0]:
                continue
            name, asked = self.roofline.binding(launch, footprint)
            took = float(
                self.roofline.launch_us(launch.family, tuple(w[:1] for w in launch.widths), footprint[:1])[0]
            )
            moved[launch.kernel] += float(asked.moved[0] + asked.weights[0]) * self.figures.bytes
            if took > longest[launch.kernel]:
                longest[launch.kernel], bounds[launch.kernel] = took, name
        return bounds, moved


@dataclass(frozen=True, eq=False)
class FleetCost:
    """What plans cost on every device of a set: each figure is the most on any of them.

    Attributes:
        costs: of each device, at least one, all of the same network.
    """

    costs: Sequence[Cost]

    def evaluate(self, counts: FloatArray, of: Collection[str] | None = None) -> Costs:
        """Cost `P` plans that keep `counts[P, G]` units of the graph's groups; only the columns `of`, if given."""
        members = {cost.device: cost.evaluate(counts, of) for cost in self.costs}
        columns = [costs.columns() for costs in members.values()]
        most = {name: np.max([column[name] for column in columns], axis=0) for name in columns[0]}
        return replace(_costs(most), members=members)

    def layers(self, counts: FloatArray) -> list[LayerCost]:
        """Cost one plan on the device that takes longest for the whole network."""
        return self.slowest.layers(counts)

    @property
    def slowest(self) -> Cost:
        """The model of the device that takes longest for the whole network."""
        dense = np.array([self.costs[0].work.group_sizes], np.float64)
        return max(self.costs, key=lambda cost: float(cost.evaluate(dense).latency_ms[0]))

    def anchored(
        self, counts: FloatArray, latency_ms: float | None = None, *, size_bytes: float | None = None
    ) -> FleetCost:
        """The same models, told how large the exported file is; see `Cost.anchored`."""
        return replace(
            self, costs=[cost.anchored(counts, latency_ms, size_bytes=size_bytes) for cost in self.costs]
        )

    def anchored_like(self, other: Cost | FleetCost) -> FleetCost:
        """The same models, each scaled as that of the same device in `other`."""
        return replace(self, costs=[cost.anchored_like(other) for cost in self.costs])

    @property
    def capacity(self) -> Mapping[str, float]:
        """The limits that a plan must keep to run on every device."""
        limits = [item for cost in self.costs for item in cost.capacity.items()]
        return {name: min(value for other, value in limits if other == name) for name, _ in limits}

    @property
    def basis(self) -> Basis:
        """What latencies stand on, on the device of which least is known."""
        order: tuple[Basis, ...] = ("estimated", "calibrated", "measured")
        return min((cost.basis for cost in self.costs), key=order.index)

    @property
    def device(self) -> str:
        """The names of the devices."""
        return ", ".join(cost.device for cost in self.costs)

    @property
    def origin(self) -> str:
        """In a few words, how latencies were obtained."""
        worst = next(cost for cost in self.costs if cost.basis == self.basis)
        return f"the most on any of {len(self.costs)} devices, {worst.origin}"

    @property
    def energy_origin(self) -> str:
        """In a few words, what energies stand on, on the device of which least is known."""
        return next((c for c in self.costs if c.figures.energy_assumed), self.costs[0]).energy_origin

    @property
    def assumed(self) -> tuple[str, ...]:
        """A sentence for each figure that was assumed, and for which device."""
        return tuple(f"{cost.device}: {sentence}" for cost in self.costs for sentence in cost.assumed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user ought to know of where the figures come from."""
        return tuple(dict.fromkeys(note for cost in self.costs for note in cost.notes))


def _costs(columns: Mapping[str, FloatArray]) -> Costs:
    return Costs(
        columns["latency_ms"], columns["macs"], columns["parameters"], columns["size_bytes"], columns["energy_mj"],
        columns["peak_memory_bytes"],
    )  # fmt: skip


def _fields(of: Collection[str] | None) -> Collection[str]:
    """The fields of `Costs` that hold what is asked of a device or of a member of a set."""
    return AMOUNTS if of is None else {name.partition(ON)[0] for name in of}


def _kind(kernel: Kernel) -> str:
    """What a step does, in a word."""
    if kernel.called:
        return kernel.called
    return kernel.op.lower() if kernel.kind in ("elementwise", "copy", "rows", "reduce") else kernel.kind
