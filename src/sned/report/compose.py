"""Put the findings of a run together as a `Report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from sned.calibration import Calibration
from sned.devices import Budget, LayerCost, MeasuredCost
from sned.export import Exported
from sned.graph import Graph
from sned.graph.example import Example
from sned.report.environment import environment
from sned.report.model import Asked, Check, Curve, GroupLoss, LayerLoss, Point, Report, State
from sned.report.shares import shares
from sned.saliency import Scores
from sned.search import Found
from sned.surgery.outputs import TOLERANCE
from sned.timing import Latency

LITTLE = 0.97
"""A pruned network that takes more than this share of the time gained nothing worth the loss."""


@dataclass(frozen=True, eq=False)
class Network:
    """One of the two networks as it was measured."""

    exported: Exported
    latency: Latency
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a run found out, in the terms of the stages that found it."""

    model: nn.Module
    graph: Graph
    budget: Budget
    limits: Mapping[str, float]
    cost: MeasuredCost
    scores: Scores
    found: Found
    curve: tuple[tuple[Found, float], ...]
    chosen_quality: float
    calibration: Calibration
    before: Network
    after: Network
    agreement: float | None
    surgery_difference: float
    notes: tuple[str, ...]
    seconds: Mapping[str, float]


def compose(findings: Findings) -> Report:
    """The `Report` of a run; nothing is measured here."""
    dense = np.array([group.size for group in findings.graph.groups], np.int64)
    before, after = (
        findings.cost.layers(counts.astype(np.float64)) for counts in (dense, findings.found.counts)
    )
    layers = tuple(_layer(a, b) for a, b in zip(before, after, strict=True))
    return Report(
        asked=_asked(findings),
        before=_state(findings, findings.before, dense),
        after=_state(findings, findings.after, findings.found.counts),
        environment=environment(),
        groups=_groups(findings),
        layers=layers,
        frozen=findings.graph.frozen,
        curve=_curve(findings),
        checks=_checks(findings),
        notes=(*_gained_nothing(findings, layers), *findings.notes, *findings.scores.notes),
        seconds=dict(findings.seconds),
    )


def _asked(findings: Findings) -> Asked:
    budget = findings.budget
    written = {
        name: value if isinstance(value, str) else f"{value:g}" for name, value in budget.amounts.items()
    }
    others = {"sparsity": budget.sparsity, "max_loss": budget.max_loss}
    given = {name: value for name, value in others.items() if value is not None}
    limits = {**findings.limits, **given}
    if isinstance(budget.latency_ms, str):  # a share of what was measured in the same interleaved run
        limits["latency_ms"] = (
            findings.before.latency.median_ms * float(budget.latency_ms.removesuffix("%")) / 100
        )
    return Asked(
        model=type(findings.model).__name__,
        example=_shown(findings.graph.example),
        budget={**written, **{name: f"{value:g}" for name, value in given.items()}},
        limits=limits,
        device=budget.device,
        runtime=budget.runtime,
        batch=budget.batch,
        threads=budget.threads,
        calibration=findings.calibration.note,
        accuracy="evaluate" if findings.after.accuracy is not None else "",
    )


def _shown(example: Example) -> str:
    return ", ".join(f"{' × '.join(map(str, leaf.shape))} {leaf.dtype}" for leaf in example.leaves())


def _state(findings: Findings, network: Network, counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> State:
    costs = findings.cost.evaluate(counts[None].astype(np.float64)).at(0)
    return State(
        accuracy=network.accuracy,
        agreement=findings.agreement if network is findings.after else None,
        latency=network.latency,
        predicted_latency_ms=costs.get("latency_ms"),
        macs=costs.get("macs"),
        parameters=costs.get("parameters"),
        size_bytes=float(network.exported.size_bytes),
        peak_memory_bytes=costs.get("peak_memory_bytes"),
        energy_mj=costs.get("energy_mj"),
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
    )


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
    parity = findings.after.exported.parity
    return (
        Check(
            "surgery",
            True,
            "The pruned module gives what the recorded ops give on the sliced weights, at two batch sizes.",
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


def _gained_nothing(findings: Findings, layers: tuple[LayerLoss, ...]) -> tuple[str, ...]:
    """Say first that a plan gained no time, and which layers the time goes to."""
    before, after = findings.before.latency.median_ms, findings.after.latency.median_ms
    if after <= before * LITTLE or not findings.found.plan.removed:
        return ()
    slowest = sorted(layers, key=lambda layer: -(layer.latency_after_ms or 0))[:3]
    names = ", ".join(f"{layer.name or 'the call itself'} ({layer.kind})" for layer in slowest)
    return (
        f"This plan gained no latency: {before:.3g} ms before, {after:.3g} ms after. Most time goes to {names}. "
        "Ask for a latency instead, or protect less.",
    )
