"""What of the hardware each layer waits for, as a table and as data."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sned.devices import Cost, LayerCost

_SHOWN = 25
"""Layers in the table: those that take longest, in running order."""


def bound_data(cost: "Cost", layers: "Sequence[LayerCost]") -> dict[str, Any]:
    """The same as plain data."""
    from dataclasses import asdict

    return {
        "bounds": [asdict(layer) for layer in layers],
        "device": cost.device,
        "basis": cost.basis,
        "assumed": list(cost.assumed),
        "notes": list(cost.notes),
    }


def bound_tables(cost: "Cost", layers: "Sequence[LayerCost]") -> "list[RenderableType]":
    """What bounds the layers that take longest; the sum by bound; and what was assumed."""
    from rich.table import Table

    from sned.report.figures import count, milliseconds, percent, size

    total = sum(layer.latency_ms for layer in layers) or 1.0
    slowest = sorted(range(len(layers)), key=lambda at: -layers[at].latency_ms)[:_SHOWN]
    table = Table(title=f"What bounds each layer on {cost.device}, by its profile", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("what", "waits for"):
        table.add_column(heading)
    for heading in ("latency", "share", "MACs", "moved", "MACs a byte"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in (layers[at] for at in sorted(slowest)):
        intensity = f"{layer.macs / layer.bytes_moved:.3g}" if layer.bytes_moved else ""
        table.add_row(
            layer.module, layer.kind, layer.bound, milliseconds(layer.latency_ms), percent(layer.latency_ms / total),
            count(layer.macs), size(layer.bytes_moved), intensity,
        )  # fmt: skip
    return [table, f"{_left(len(layers))}{_sums(layers, total)} Latencies are {cost.origin}.{_said(cost)}"]


def _left(count: int) -> str:
    if count <= _SHOWN:
        return ""
    return f"The {_SHOWN} longest of {count} steps; --report FILE.html and --json have all. "


def _sums(layers: "Sequence[LayerCost]", total: float) -> str:
    from sned.report.figures import percent

    by_bound: dict[str, float] = defaultdict(float)
    for layer in layers:
        by_bound[layer.bound or "nothing (merged)"] += layer.latency_ms / total
    parts = sorted(by_bound.items(), key=lambda item: -item[1])
    return (
        "Of all time: "
        + ", ".join(f"{percent(share, 0)} {name}" for name, share in parts if share >= 0.005)
        + "."
    )


def _said(cost: "Cost") -> str:
    return "".join(f"\n· {sentence}" for sentence in (*cost.notes, *cost.assumed))
