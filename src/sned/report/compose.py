"""Put the findings of a run together as a `Report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from sned.calibration import Calibration
from sned.devices import Budget, Cost, CostModel, FleetCost, LayerCost
from sned.devices.budget import ON, PER_DEVICE
from sned.devices.model import batch_of
from sned.export import Exported
from sned.graph import Graph
from sned.graph.example import Example
from sned.graph.ir import IntArray
from sned.report.environment import environment
from sned.report.figures import written
from sned.report.model import Asked, Check, Curve, GroupLoss, LayerLoss, Point, Report, Roofs, State
from sned.report.shares import shares
from sned.saliency import Scores
from sned.saliency.scores import FloatArray
from sned.search import Found
from sned.surgery.outputs import TOLERANCE
from sned.timing import Latency

LITTLE = 0.97
"""A pruned network that takes more than this share of the time gained nothing worth the loss."""


_ON_EACH = tuple(f"{name}{ON}" for name in PER_DEVICE)


STAIR, STAIR_LEVEL = 1e-3, 1e-6
"""Of the whole latency: what one unit costs at the end of a stair, at least, and on it, at most."""


@dataclass(frozen=True, eq=False)
class Network:
    """One of the two networks as it was measured; `latency` is None where the device is not this machine."""

    exported: Exported
    latency: Latency | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Whole:
    """The user's own network, all its layers and units there, and the model of its costs."""

    graph: Graph
    cost: Cost | FleetCost

    @property
    def sizes(self) -> FloatArray:
        """`[groups]`: all units."""
        return np.array([group.size for group in self.graph.groups], np.float64)

    def costs(self) -> dict[str, float]:
        """Predicted costs."""
        return self.cost.evaluate(self.sizes[None]).at(0)

    def anchored(self, latency_ms: float | None, size_bytes: float | None) -> Whole:
        """The same, so that predictions agree with what was measured."""
        return replace(self, cost=self.cost.anchored(self.sizes, latency_ms, size_bytes=size_bytes))


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a run found out, in the terms of the stages that found it.

    Where layers were left out, `graph`, `cost` and `scores` are of the network without them.
    """

    model: nn.Module
    graph: Graph
    budget: Budget
    limits: Mapping[str, float]
    cost: Cost | FleetCost
    whole: Whole
    scores: Scores
    found: Found
    curve: tuple[tuple[Found, float], ...]
    chosen_quality: float
    calibration: Calibration
    before: Network
    after: Network
    agreement: float | None
    compared: str
    surgery_difference: float
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    stages: Mapping[str, float] = field(default_factory=dict)


def compose(findings: Findings) -> Report:
    """The `Report` of a run; nothing is measured here."""
    layers = _layers(findings)
    small = findings.cost.evaluate(findings.found.counts[None].astype(np.float64)).at(0)
    return Report(
        asked=_asked(findings),
        before=_state(findings, findings.before, findings.whole.costs()),
        after=_state(findings, findings.after, small),
        environment=environment(),
        groups=_groups(findings),
        layers=layers,
        frozen=findings.graph.frozen,
        curve=_curve(findings),
        roofs=roofs(findings.cost.slowest),
        checks=_checks(findings),
        warning=_gained_nothing(findings, layers),
        notes=(
            *_on_the_way(findings),
            *findings.notes,
            *stairs(findings.graph, findings.cost, findings.found.counts),
            *findings.scores.notes,
        ),
        seconds=dict(findings.seconds),
        stages=dict(findings.stages),
    )


def _asked(findings: Findings) -> Asked:
    budget = findings.budget
    written = {
        name: value if isinstance(value, str) else f"{value:g}" for name, value in budget.amounts.items()
    }
    others = {"sparsity": budget.sparsity, "max_loss": budget.max_loss}
    given = {name: value for name, value in others.items() if value is not None}
    limits = {**findings.limits, **given}
    measured = findings.before.latency
    if (
        isinstance(budget.latency_ms, str) and measured is not None
    ):  # a share of what was measured in the same interleaved run
        limits["latency_ms"] = measured.median_ms * float(budget.latency_ms.removesuffix("%")) / 100
    return Asked(
        model=type(findings.model).__name__,
        example=_shown(findings.graph.example),
        budget={**written, **{name: f"{value:g}" for name, value in given.items()}},
        limits=limits,
        device=budget.device,
        runtime=budget.runtime,
        batch=batch_of(findings.graph, budget.batch),
        threads=budget.threads,
        calibration=findings.calibration.note,
        compared=findings.compared,
        accuracy="evaluate" if findings.after.accuracy is not None else "",
        basis=findings.cost.basis,
        origin=findings.cost.origin,
        energy=findings.cost.energy_origin,
        dtype=budget.dtype,
    )


def _shown(example: Example) -> str:
    return ", ".join(f"{' × '.join(map(str, leaf.shape))} {leaf.dtype}" for leaf in example.leaves())


def _state(findings: Findings, network: Network, costs: Mapping[str, float]) -> State:
    return State(
        accuracy=network.accuracy,
        agreement=findings.agreement if network is findings.after else None,
        latency=network.latency,
        predicted_latency_ms=costs.get("latency_ms"),
        macs=costs.get("macs"),
        parameters=costs.get("parameters"),
        size_bytes=float(network.exported.size_bytes)
        if findings.budget.dtype == "float32"
        else costs["size_bytes"],
        peak_memory_bytes=costs.get("peak_memory_bytes"),
        energy_mj=costs.get("energy_mj"),
        on_devices={name: value for name, value in costs.items() if name.startswith(_ON_EACH)},
    )


def _groups(findings: Findings) -> tuple[GroupLoss, ...]:
    worth = shares(findings.graph, findings.cost)
    return tuple(
        GroupLoss(
            name=group.name,
            before=group.size,
            after=int(kept),
            macs_share=share.macs,
            latency_share=share.latency,
            error=float(findings.scores.error[group.name][group.size - int(kept)]),
        )
        for group, kept, share in zip(findings.graph.groups, findings.found.counts, worth, strict=True)
    )


def _layers(findings: Findings) -> tuple[LayerLoss, ...]:
    """Every layer before and after; nothing is left of those that were left out."""
    left: dict[tuple[str, str], list[LayerCost]] = {}
    for layer in findings.cost.layers(findings.found.counts.astype(np.float64)):
        left.setdefault((layer.module, layer.kind), []).append(layer)
    pairs = []
    for before in findings.whole.cost.layers(findings.whole.sizes):
        same = left.get((before.module, before.kind))
        gone = replace(before, latency_ms=0.0, macs=0.0, parameters=0.0)
        pairs.append(_layer(before, same.pop(0) if same else gone))
    return tuple(pairs)


def _layer(before: LayerCost, after: LayerCost) -> LayerLoss:
    return LayerLoss(
        before.module,
        before.kind,
        before.latency_ms,
        after.latency_ms,
        before.macs,
        after.macs,
        before.parameters,
        after.parameters,
        before.bound,
        after.bound,
        before.bytes_moved,
        after.bytes_moved,
    )


def roofs(cost: Cost) -> Roofs:
    """What bounds layers on the device of a cost model."""
    figures = cost.figures
    gb_s = {name: float(rate) / 1e3 for name, rate in zip(figures.levels, figures.bytes_per_us, strict=True)}
    return Roofs(cost.device, figures.macs_per_us / 1e3, gb_s, figures.assumed)


def _curve(findings: Findings) -> Curve:
    """Predicted latency against how alike the answers are after the cheapest repair."""
    plans = [(found, quality, False) for found, quality in findings.curve]
    plans.append((findings.found, findings.chosen_quality, True))
    points = [
        Point(found.costs["latency_ms"], quality, chosen)
        for found, quality, chosen in plans
        if "latency_ms" in found.costs
    ]
    measure = (
        "agreement with the dense network"
        if findings.agreement is not None
        else "1 - relative error of the outputs"
    )
    return Curve(
        f"{measure} on calibration inputs, BatchNorm re-estimated and nothing else repaired",
        tuple(sorted(points, key=lambda point: point.latency_ms)),
    )


def _checks(findings: Findings) -> tuple[Check, ...]:
    parity, graph = findings.after.exported.parity, findings.graph
    sizes = (
        "at two batch sizes" if graph.batched else f"at batch size {graph.batch}, the only one that it takes"
    )
    return (
        Check(
            "surgery",
            True,
            f"The pruned module gives what the recorded ops give on the sliced weights, {sizes}.",
            findings.surgery_difference,
            TOLERANCE,
        ),
        Check(
            "export",
            True,
            "The ONNX file gives what PyTorch gives, on the example and on fresh inputs; the largest difference.",
            parity.max_abs_diff,
        ),
    )


def _on_the_way(findings: Findings) -> tuple[str, ...]:
    """The accuracy at each stage, where a network was trained."""
    if not findings.stages:
        return ()
    told = ", ".join(f"{written('accuracy', value)} {stage}" for stage, value in findings.stages.items())
    return (f"By `evaluate`: {told}.",)


def _gained_nothing(findings: Findings, layers: tuple[LayerLoss, ...]) -> str:
    """Say that a plan removed parameters and gained no time, and which layers are to blame; else nothing."""
    measured = findings.before.latency is not None and findings.after.latency is not None
    before, after = (_latency(findings, network) for network in (findings.before, findings.after))
    plan = findings.found.plan
    if after <= before * LITTLE or not (plan.removed or plan.bypassed):
        return ""
    how = "measured" if measured else "estimated"
    return (
        f"This plan removes parameters and gains no latency: {before:.3g} ms before, {after:.3g} ms after ({how}). "
        f"{_to_blame(layers)}"
        "Ask for a latency instead of a size, or let sned choose other groups."
    )


def stairs(graph: Graph, cost: CostModel, counts: IntArray) -> tuple[str, ...]:
    """Say where a plan stands on the stairs of the kernels: they compute channels in tiles, and round the last one up.

    A cut group stands at the end of a stair where one unit more would cost latency and one less would gain none; it
    stands on a stair where one unit more would cost none, which is latency that the plan did not gain.

    Args:
        graph: with `G` groups.
        cost: a model of the costs of that graph.
        counts: `[G]`, units kept.
    """
    sizes = np.array([group.size for group in graph.groups])
    cells = np.array([group.cell_count for group in graph.groups])
    cut = np.flatnonzero((counts < sizes) & (counts > cells))
    if not len(cut):
        return ()
    steps = np.zeros((2, len(cut), len(counts)))
    steps[0, np.arange(len(cut)), cut], steps[1, np.arange(len(cut)), cut] = cells[cut], -cells[cut]
    plans = np.concatenate([counts[None], (counts + steps).reshape(-1, len(counts))]).astype(np.float64)
    latency = cost.evaluate(plans).latency_ms
    more, less = latency[1 : len(cut) + 1] / latency[0] - 1, 1 - latency[len(cut) + 1 :] / latency[0]
    ends = int(((more > STAIR) & (less < more / 2)).sum())
    idle = [graph.groups[group].name for group, gain in zip(cut, more, strict=True) if gain <= STAIR_LEVEL]
    said = []
    if ends:
        said.append(
            f"{ends} of {len(cut)} cut groups keep as many units as their kernels compute at once: one more would cost "
            "latency, one less would gain little."
        )
    if idle:
        said.append(
            f"{len(idle)} of {len(cut)} cut groups could keep more units at no latency ({_first(idle)}): kernels round "
            "them up. A latency budget would have kept them."
        )
    return tuple(said)


def _first(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _latency(findings: Findings, network: Network) -> float:
    if network.latency is not None:
        return network.latency.median_ms
    if network is findings.before:
        return findings.whole.costs()["latency_ms"]
    return findings.cost.evaluate(findings.found.counts[None].astype(np.float64)).at(0)["latency_ms"]


def _to_blame(layers: tuple[LayerLoss, ...]) -> str:
    """The layers that lost most parameters and take as long as before, and what they wait for."""
    lost = {layer: (layer.parameters_before or 0) - (layer.parameters_after or 0) for layer in layers}
    idle = [
        layer for layer in layers
        if lost[layer] > 0 and (layer.latency_after_ms or 0) > LITTLE * (layer.latency_before_ms or 0)
    ]  # fmt: skip
    worst = sorted(idle, key=lambda layer: -lost[layer])[:3]
    if not worst:
        slowest = sorted(layers, key=lambda layer: -(layer.latency_after_ms or 0))[:3]
        return f"Most time goes to {', '.join(_called(layer) for layer in slowest)}. "
    return f"Smaller, and no faster: {', '.join(_called(layer) for layer in worst)}. "


def _called(layer: LayerLoss) -> str:
    waits = f", waits for {layer.bound_after}" if layer.bound_after else ""
    return f"{layer.name or 'the call itself'} ({layer.kind}{waits})"
