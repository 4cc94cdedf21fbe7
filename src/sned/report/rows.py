"""The table of a report: before, after and their ratio, each figure beside how it was obtained."""

from collections.abc import Callable
from dataclasses import dataclass

from sned.report.figures import NOTHING, QUANTITIES, label, written
from sned.report.model import Report, State
from sned.timing import Latency


@dataclass(frozen=True)
class Row:
    """One quantity of a network, dense and pruned.

    Attributes:
        name: key, as in `Budget` where it is there.
        label: for people.
        before: figure with unit, or "–".
        after: the same of the pruned network.
        change: "×0.49", or "−0.44 pp" for scores.
        how: by what the figures were obtained.
        fraction: after over before; None where one is missing, or for scores.
    """

    name: str
    label: str
    before: str
    after: str
    change: str
    how: str
    fraction: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether one part of what was asked was reached, as a sentence; None where it was not measured."""

    name: str
    met: bool | None
    sentence: str


_Get = Callable[[State], float | None]


def _of_latency(get: Callable[[Latency], float]) -> _Get:
    return lambda state: get(state.latency) if state.latency else None


_VALUES: dict[str, _Get] = {
    "accuracy": lambda state: state.accuracy,
    "agreement": lambda state: state.agreement,
    "latency_ms": _of_latency(lambda latency: latency.median_ms),
    "latency_p90_ms": _of_latency(lambda latency: latency.p90_ms),
    "predicted_latency_ms": lambda state: state.predicted_latency_ms,
    "macs": lambda state: state.macs,
    "parameters": lambda state: state.parameters,
    "size_bytes": lambda state: state.size_bytes,
    "peak_memory_bytes": lambda state: state.peak_memory_bytes,
    "energy_mj": lambda state: state.energy_mj,
}


_FLOORS = ("sparsity",)
_ROUNDING = 0.05
"""Units are whole, and widths are rounded to what kernels like: a sparsity is met to within this much."""


def rows(report: Report) -> list[Row]:
    """One row for each quantity that was obtained for either network, in a fixed order."""
    pairs = ((name, get(report.before), get(report.after)) for name, get in _VALUES.items())
    return [_row(report, name, *pair) for name, *pair in pairs if any(value is not None for value in pair)]


def verdicts(report: Report) -> list[Verdict]:
    """Compare each limit with what was obtained for the pruned network: measured, or else predicted."""
    return [_verdict(report, name, limit) for name, limit in report.asked.limits.items()]


def headline(report: Report) -> str:
    """The gain in a few words: "2.04× faster · 98.22 % accuracy (−0.44 pp) · 51 % of the parameters"."""
    parts = [_warned(report), _speed(report), _quality(report), _weight(report)]
    return " · ".join(filter(None, parts)) or "Nothing was measured"


def _warned(report: Report) -> str:
    return "No latency gained" if report.warning else ""


def _row(report: Report, name: str, before: float | None, after: float | None) -> Row:
    quantity = QUANTITIES[name]
    both = before is not None and after is not None
    scored = name in ("accuracy", "agreement")
    return Row(
        name=name,
        label=_called(report, name, quantity.label),
        before=NOTHING if before is None else quantity.write(before),
        after=NOTHING if after is None else quantity.write(after),
        change=quantity.change(before, after) if before is not None and after is not None else NOTHING,
        how=_how(report, name),
        fraction=after / before if both and before and after is not None and not scored else None,
    )


def _called(report: Report, name: str, label_: str) -> str:
    estimated = name == "predicted_latency_ms" and report.asked.basis == "estimated"
    return "Latency, estimated" if estimated else label_


def _how(report: Report, name: str) -> str:
    asked, latency = report.asked, report.after.latency or report.before.latency
    if name in ("latency_ms", "latency_p90_ms") and latency:
        version = report.environment.versions.get("onnxruntime", "")
        threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
        return f"measured: ONNX Runtime {version}, {threads}, {latency.runs} interleaved runs"
    fixed = {
        "accuracy": f"measured: {asked.accuracy}" if asked.accuracy else "measured",
        "agreement": f"measured: same class as the dense network, on {asked.compared}",
        "predicted_latency_ms": f"predicted for {asked.device}, batch {asked.batch}{_origin(report)}",
        "macs": "counted",
        "parameters": "counted",
        "size_bytes": "measured: the ONNX file"
        if _of_file(report)
        else f"its weights in {asked.dtype}, counted",
        "peak_memory_bytes": "activations, estimated from shapes",
        "energy_mj": asked.energy or "an estimate",
    }
    return fixed.get(name, "")


def _origin(report: Report) -> str:
    return f": {report.asked.origin}" if report.asked.origin else ""


def _verdict(report: Report, name: str, limit: float) -> Verdict:
    asked = report.asked.budget.get(name.partition("@")[0], "")
    relative = f" ({asked} of the dense network's)" if asked.endswith(("%", "x")) else ""
    floor = name in _FLOORS
    wish = f"{label(name)} at {'least' if floor else 'most'} {written(name, limit)}{relative}"
    reached = _reached(report, name)
    if reached is None:
        return Verdict(name, None, f"{wish}: not measured")
    value, how = reached
    met = value >= limit - _ROUNDING if floor else value <= limit * (1 + 1e-9)
    return Verdict(name, met, f"{wish}: {written(name, value)} {how}")


def _reached(report: Report, name: str) -> tuple[float, str] | None:
    if name == "max_loss":
        before, after = report.before.accuracy, report.after.accuracy
        return None if before is None or after is None else (before - after, "measured")
    if name == "sparsity":
        units, kept = sum(g.before for g in report.groups), sum(g.after for g in report.groups)
        return (1 - kept / units, "of the units") if units else None
    measured = _VALUES[name](report.after) if name in _VALUES else None
    predicted = (
        report.after.predicted_latency_ms if name == "latency_ms" else report.after.on_devices.get(name)
    )
    if measured is None:
        return None if predicted is None else (predicted, _predicted(report))
    if name == "size_bytes":
        return measured, "measured" if _of_file(report) else "counted"
    return measured, _OBTAINED.get(name, "counted")


_OBTAINED = {"latency_ms": "measured", "energy_mj": "estimated", "peak_memory_bytes": "estimated"}


def _of_file(report: Report) -> bool:
    """Whether sizes are those of the exported files, which hold float32."""
    return report.asked.dtype == "float32"


def _predicted(report: Report) -> str:
    return "estimated" if report.asked.basis == "estimated" else "predicted"


def _speed(report: Report) -> str:
    before, after = report.before.latency, report.after.latency
    if before is not None and after is not None:
        return _times(before.median_ms / after.median_ms)
    predicted = report.before.predicted_latency_ms, report.after.predicted_latency_ms
    if predicted[0] is None or predicted[1] is None:
        return ""
    return f"{_times(predicted[0] / predicted[1])} ({_predicted(report)})"


def _times(factor: float) -> str:
    return f"{factor:.2f}× faster" if factor >= 1 else f"{1 / factor:.2f}× slower"


def _quality(report: Report) -> str:
    name = "accuracy" if report.after.accuracy is not None else "agreement"
    before, after = _VALUES[name](report.before), _VALUES[name](report.after)
    if after is None:
        return ""
    what = "accuracy" if name == "accuracy" else "agreement with the dense network"
    change = (
        f" ({QUANTITIES[name].change(before, after)})" if before is not None and name == "accuracy" else ""
    )
    return f"{written(name, after)} {what}{change}"


def _weight(report: Report) -> str:
    before, after = report.before.parameters, report.after.parameters
    return f"{100 * after / before:.0f} % of the parameters" if before and after is not None else ""
