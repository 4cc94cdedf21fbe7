"""The pictures of a report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sned.report.figures import milliseconds, percent, score
from sned.report.model import Curve, GroupLoss, LayerLoss, Report, State
from sned.report.svg import AFTER, AFTER_SOFT, BEFORE, INK, LIMIT, MUTED, SURFACE, Picture, figure, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 9.2
_BAR = 0.62
_LITTLE = 0.01
"""Of all time: layers below are not worth a row of their own."""

_FARTHEST = 1.5
"""Axes of latency end at this multiple of the largest median: a busy machine must not hide the bars."""

_MOST_ROWS = 48
"""A picture of more rows than this is no longer read; the ones that matter most are shown."""


def group_chart(groups: Sequence[GroupLoss]) -> Picture | None:
    """Units kept of each group: the whole bar is what there was, the filled part what is left."""
    if not groups:
        return None
    shown = _most(groups, lambda group: group.before - group.after)
    with figure(_WIDTH, _height(len(shown))) as drawn:
        axes = drawn.subplots()
        places = range(len(shown))
        axes.barh(places, [g.before for g in shown], _BAR, color=AFTER_SOFT, label="removed")
        axes.barh(places, [g.after for g in shown], _BAR, color=AFTER, label="kept")
        widest = max(g.before for g in shown)
        for place, group in enumerate(shown):
            kept = f"{group.after} of {group.before} · {percent(group.after / group.before, 0)}"
            _note(axes, group.before, place, kept)
        _rows(axes, [group.name for group in shown])
        axes.set_xlim(0, widest * 1.2)
        axes.set_xlabel("units")
        axes.legend(loc="lower right", reverse=True, ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
        description = f"Units kept in {len(shown)} groups{_of_all(shown, groups)}."
        return inline(drawn, name="groups", description=description)


def layer_chart(layers: Sequence[LayerLoss]) -> Picture | None:
    """Where the time goes: predicted latency of each layer, before and after; small ones in one row."""
    timed = _merged(
        [(x.name or x.kind, x.latency_before_ms or 0.0, x.latency_after_ms or 0.0) for x in layers]
    )
    if not any(before for _, before, _ in timed):
        return None
    shown = _most(timed, lambda row: row[1])
    names, befores, afters = (list(column) for column in zip(*shown, strict=True))
    with figure(_WIDTH, _height(len(shown))) as drawn:
        axes = drawn.subplots()
        for place, (before, after) in enumerate(zip(befores, afters, strict=True)):
            axes.plot([after, before], [place, place], color=AFTER_SOFT, linewidth=4, solid_capstyle="round")
        axes.scatter(befores, range(len(shown)), 34, color=BEFORE, label="before", zorder=3)
        axes.scatter(afters, range(len(shown)), 34, color=AFTER, label="after", zorder=4)
        _rows(axes, names)
        axes.set_xlim(left=0)
        axes.set_xlabel("predicted latency, ms")
        axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
        description = f"Predicted latency of {len(shown)} layers{_of_all(shown, timed)}, before and after."
        return inline(drawn, name="layers", description=description)


def _merged(rows: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """The rows of layers that take time, and one for all that take less than a hundredth each."""
    least = _LITTLE * sum(before for _, before, _ in rows)
    large = [row for row in rows if max(row[1:]) >= least]
    small = [row for row in rows if max(row[1:]) < least]
    if len(small) < 2:
        return list(rows)
    return [*large, (f"{len(small)} others", sum(row[1] for row in small), sum(row[2] for row in small))]


def latency_chart(report: Report) -> Picture | None:
    """Predicted beside measured, before and after; whiskers from the 10th to the 90th percentile."""
    states = [("before", report.before, BEFORE), ("after", report.after, AFTER)]
    if not any(state.latency for _, state, _ in states):
        return None
    limit = report.asked.limits.get("latency_ms")
    with figure(_WIDTH, 2.9) as drawn:
        axes = drawn.subplots()
        names = []
        for place, (name, state, colour) in enumerate(states):
            _latency_bars(axes, place * 2.4, state, colour, limit)
            names += [(place * 2.4, f"{name}, predicted"), (place * 2.4 + 1, f"{name}, measured")]
        end = _FARTHEST * max(filter(None, (*map(_longest, (report.before, report.after)), limit)))
        axes.set_xlim(0, min(end, axes.get_xlim()[1] * 1.1))
        if limit is not None:
            _limit(axes, limit, height=0.46)
        axes.set_yticks([place for place, _ in names], [name for _, name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("latency, ms a run")
        return inline(drawn, name="latency", description="Latency before and after, predicted and measured.")


def curve_chart(report: Report) -> Picture | None:
    """The trade-off of quality against latency, with the chosen point and what was asked."""
    curve = report.curve
    if curve is None or not curve.points:
        return None
    limit = report.asked.limits.get("latency_ms")
    with figure(_WIDTH, 4.0) as drawn:
        axes = drawn.subplots()
        points = sorted(curve.points, key=lambda point: point.latency_ms)
        xs, ys = [p.latency_ms for p in points], [_scaled(curve, p.quality) for p in points]
        axes.plot(xs, ys, color=AFTER, linewidth=2, zorder=2)
        axes.scatter(xs, ys, 30, color=SURFACE, edgecolors=AFTER, linewidths=1.8, zorder=3)
        axes.set_xlim(0, max([*xs, limit or 0]) * 1.06)
        for x, y, point in zip(xs, ys, points, strict=True):
            if point.chosen:
                quality = score(point.quality) if _fractions(curve) else f"{point.quality:.3g}"
                _chosen(axes, x, y, f"{milliseconds(x)}, {quality}")
        if limit is not None:
            _limit(axes, limit)
        axes.margins(y=0.16)
        axes.set_xlabel("predicted latency, ms")
        unit = ", %" if _fractions(curve) else ""
        axes.set_title(f"{curve.quality}{unit}", loc="left", fontsize=11, color=MUTED)
        axes.tick_params(axis="y", labelcolor=MUTED)
        description = (
            f"{curve.quality} against predicted latency, {len(points)} plans; the chosen one is marked."
        )
        return inline(drawn, name="curve", description=description)


def _longest(state: State) -> float:
    return max(state.predicted_latency_ms or 0.0, state.latency.median_ms if state.latency else 0.0)


def _latency_bars(axes: "Axes", place: float, state: State, colour: str, limit: float | None) -> None:
    predicted, measured = state.predicted_latency_ms, state.latency
    if predicted is not None:
        axes.barh(place, predicted, 0.8, color="none", edgecolor=colour, linewidth=1.5, hatch="////")
        _note(axes, _clear_of(limit, predicted), place, milliseconds(predicted))
    if measured is not None:
        axes.barh(place + 1, measured.median_ms, 0.8, color=colour)
        axes.plot([measured.p10_ms, measured.p90_ms], [place + 1] * 2, color=INK, linewidth=1.4)
        end = min(measured.p90_ms, 1.2 * measured.median_ms)
        _note(axes, _clear_of(limit, end), place + 1, milliseconds(measured.median_ms))


def _clear_of(limit: float | None, end: float) -> float:
    """Where a label may begin: right of the bar, and of the line of what was asked if that is close."""
    return limit if limit is not None and end <= limit < 1.4 * end else end


def _chosen(axes: "Axes", x: float, y: float, text: str) -> None:
    axes.scatter([x], [y], 90, color=AFTER, edgecolors=INK, linewidths=1.6, zorder=5)
    right = x < 0.6 * axes.get_xlim()[1]
    axes.annotate(
        f"chosen: {text}",
        (x, y),
        xytext=(12 if right else -12, -18),
        textcoords="offset points",
        ha="left" if right else "right",
        weight="bold",
    )


def _limit(axes: "Axes", limit: float, *, height: float = 0.03) -> None:
    """Draw what was asked as a line, named at `height`, a fraction of the axes."""
    right = limit < 0.8 * axes.get_xlim()[1]
    axes.axvline(limit, color=LIMIT, linewidth=1.5, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"asked: {milliseconds(limit)}",
        (limit, height),
        xycoords=("data", "axes fraction"),
        xytext=(6 if right else -6, 0),
        ha="left" if right else "right",
        textcoords="offset points",
        color=LIMIT,
        va="bottom",
    )


def _note(axes: "Axes", x: float, y: float, text: str) -> None:
    ground = {"facecolor": SURFACE, "edgecolor": "none", "pad": 1.5}
    axes.annotate(
        text,
        (x, y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        color=MUTED,
        bbox=ground,
    )


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names), fontsize=10)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _height(count: int) -> float:
    return 0.95 + 0.27 * max(count, 2)


def _most(items: Sequence[Any], weight: Any) -> list[Any]:
    """Those that weigh most, in their own order."""
    if len(items) <= _MOST_ROWS:
        return list(items)
    kept = sorted(range(len(items)), key=lambda place: -weight(items[place]))[:_MOST_ROWS]
    return [items[place] for place in sorted(kept)]


def _of_all(shown: Sequence[object], all_: Sequence[object]) -> str:
    return f" of {len(all_)}" if len(shown) < len(all_) else ""


def _fractions(curve: Curve) -> bool:
    """Whether the quality is a fraction of inputs, so that percentages can be read."""
    named = curve.quality.lower().startswith(("accuracy", "agreement"))
    return named and all(0 <= point.quality <= 1 for point in curve.points)


def _scaled(curve: Curve, quality: float) -> float:
    return 100 * quality if _fractions(curve) else quality
