"""Numbers as people read them: three significant digits, a unit, and the change from before to after."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NOTHING = "–"


def count(value: float) -> str:
    """57_200_000 → "57.2 M"; below 1,000 as it is."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale * 0.9995:
            return f"{significant(value / scale)} {prefix}"
    return significant(value) if value % 1 else f"{value:.0f}"


def size(value: float) -> str:
    """5_400_000 → "5.40 MB", decimal as file managers and data sheets count."""
    shown = count(value)
    return f"{shown}B" if shown[-1].isalpha() else f"{shown} B"


def milliseconds(value: float) -> str:
    """0.5123 → "0.512 ms"."""
    return f"{significant(value)} ms"


def percent(fraction: float, digits: int = 1) -> str:
    """0.984 → "98.4 %"."""
    return f"{100 * fraction:.{digits}f} %"


def score(value: float) -> str:
    """A fraction as a percentage with two digits, anything else (a perplexity, say) as it is."""
    return percent(value, 2) if 0 <= value <= 1 else significant(value, 4)


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, never in powers of ten: 0.0123, 1.23, 12.3, 1230."""
    if value == 0:
        return "0"
    places = max(0, digits - len(str(int(abs(value)))) if abs(value) >= 1 else _leading_zeros(value) + digits)
    return f"{value:,.{places}f}"


def _leading_zeros(value: float) -> int:
    return next((zeros for zeros in range(12) if abs(value) * 10 ** (zeros + 1) >= 1), 12)


def ratio(before: float, after: float) -> str:
    """After over before: "×0.49"; nothing where before is zero."""
    return f"×{significant(after / before, 2 if after / before < 1 else 3)}" if before else NOTHING


def difference(before: float, after: float) -> str:
    """The change of a score: percentage points for fractions, else the plain difference; always signed."""
    fractions = 0 <= before <= 1 and 0 <= after <= 1
    change = (after - before) * (100 if fractions else 1)
    if abs(change) < 0.005:
        return "±0"
    return (f"{change:+.2f} pp" if fractions else f"{change:+.4g}").replace("-", "−")


@dataclass(frozen=True)
class Quantity:
    """How one quantity of a budget or a state is called, written and compared."""

    label: str
    write: Callable[[float], str]
    change: Callable[[float, float], str] = ratio


QUANTITIES: Mapping[str, Quantity] = {
    "accuracy": Quantity("Accuracy", score, difference),
    "agreement": Quantity("Agreement with the dense network", score, difference),
    "latency_ms": Quantity("Latency, median", milliseconds),
    "latency_p90_ms": Quantity("Latency, p90", milliseconds),
    "predicted_latency_ms": Quantity("Latency, predicted", milliseconds),
    "macs": Quantity("MACs", count),
    "parameters": Quantity("Parameters", count),
    "size_bytes": Quantity("File size", size),
    "peak_memory_bytes": Quantity("Peak memory", size),
    "energy_mj": Quantity("Energy", lambda value: f"{significant(value)} mJ"),
    "sparsity": Quantity("Units removed", percent),
    "max_loss": Quantity("Accuracy given up", score),
}


def written(name: str, value: float) -> str:
    """A quantity with its unit: `written("latency_ms", 0.5)` → "0.500 ms"."""
    quantity = QUANTITIES.get(name.partition("@")[0])
    return quantity.write(value) if quantity else significant(value)


def label(name: str) -> str:
    """What a quantity is called in a table; "latency_ms@pixel-9" is that on one device of a set."""
    kind, on, device = name.partition("@")
    quantity = QUANTITIES.get(kind)
    called = quantity.label if quantity else kind
    return f"{called} on {device}" if on else called
