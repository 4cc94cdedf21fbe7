"""The roofline picture: what each layer reaches, under what the hardware allows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sned.report.model import LayerLoss, Report, Roofs
from sned.report.svg import AFTER, BEFORE, GRID, MUTED, Picture, figure, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 9.2, 4.6
_LITTLE = 0.003
"""Of all time: layers below are left out."""


def roofline_chart(report: Report) -> Picture | None:
    """Speed of each layer against its MACs a byte, before and after, under the roofs of the device."""
    if report.roofs is None:
        return None
    before = _points([(x.macs_before, x.bytes_before, x.latency_before_ms) for x in report.layers])
    after = _points([(x.macs_after, x.bytes_after, x.latency_after_ms) for x in report.layers])
    return draw(report.roofs, {"before": before, "after": after})


def of_layers(roofs: Roofs, layers: Sequence[LayerLoss]) -> Picture | None:
    """The same for one network, that of `..._before`."""
    return draw(
        roofs, {"layers": _points([(x.macs_before, x.bytes_before, x.latency_before_ms) for x in layers])}
    )


def draw(roofs: Roofs, series: dict[str, list[tuple[float, float]]]) -> Picture | None:
    """Draw points (MACs a byte, billions of MACs a second) under the roofs; None where there are no points."""
    points = [point for found in series.values() for point in found]
    if not points:
        return None
    low = min(x for x, _ in points) / 2
    high = max(max(x for x, _ in points), *(roofs.gmacs_s / rate for rate in roofs.gb_s.values())) * 2
    with figure(_WIDTH, _HEIGHT) as drawn:
        axes = drawn.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        _roofs(axes, roofs, low, high)
        for (name, found), colour in zip(series.items(), (BEFORE, AFTER), strict=False):
            axes.scatter([x for x, _ in found], [y for _, y in found], 26, color=colour, label=name, zorder=3)
        axes.set_xlim(low, high)
        axes.set_ylim(min(y for _, y in points) / 2, roofs.gmacs_s * 2)
        for axis in (axes.xaxis, axes.yaxis):
            # Powers written as formulas do not become text of the page.
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter("")
        axes.set_xlabel("multiply-accumulates for each byte moved")
        axes.set_ylabel("billions of MACs a second")
        axes.legend(loc="lower right", ncols=2)
        description = f"Roofline of {len(points)} layers on {roofs.device}."
        return inline(drawn, name="roofline", description=description)


def _roofs(axes: "Axes", roofs: Roofs, low: float, high: float) -> None:
    axes.plot([low, high], [roofs.gmacs_s] * 2, color=MUTED, linewidth=1.6)
    axes.annotate(
        "compute", (high, roofs.gmacs_s), xytext=(-4, 4), textcoords="offset points", ha="right", color=MUTED
    )
    for name, rate in roofs.gb_s.items():
        ridge = roofs.gmacs_s / rate
        axes.plot([low, ridge], [low * rate, roofs.gmacs_s], color=GRID, linewidth=1.4, zorder=1)
        if 1.5 * low < ridge:
            # In the middle of the slope, on a logarithmic scale.
            x = (low * ridge) ** 0.5
            axes.annotate(
                name, (x, x * rate), xytext=(-4, 4), textcoords="offset points", ha="right", color=MUTED
            )


def _points(
    layers: Sequence[tuple[float | None, float | None, float | None]],
) -> list[tuple[float, float]]:
    total = sum(latency or 0.0 for _, _, latency in layers)
    return [
        (macs / moved, macs / latency / 1e6)
        for macs, moved, latency in layers
        if macs and moved and latency and latency > _LITTLE * total
    ]
