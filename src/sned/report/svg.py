"""matplotlib figures as SVG in the page's own fonts, with colours that follow light and dark."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE = "#010203", "#010204", "#010205", "#010206"
BEFORE, AFTER, LIMIT, AFTER_SOFT = "#010207", "#010208", "#010209", "#01020a"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    SURFACE: "--surface",
    BEFORE: "--before",
    AFTER: "--after",
    LIMIT: "--limit",
    AFTER_SOFT: "--after-soft",
}
"""Colours that occur nowhere else, and the variable of the page that takes the place of each."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


@dataclass(frozen=True)
class Picture:
    """An inline SVG, and what it shows in words, for those who do not see it."""

    svg: str
    description: str


@contextmanager
def figure(width: float, height: float) -> Iterator["Figure"]:
    """Yield an empty figure of that many inches in the style of the page; pyplot is not involved."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def inline(drawn: "Figure", *, name: str, description: str) -> Picture:
    """Turn a figure into SVG that can stand in a page beside others.

    Args:
        drawn: the figure; call it within the `figure` block.
        name: unique in the page: identifiers inside the SVG are made from it.
        description: what the picture shows.
    """
    import matplotlib

    stream = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", _font, svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Picture(svg.strip().replace("<svg ", '<svg role="img" ', 1), description)


def _font(match: re.Match[str]) -> str:
    """The page's own font, at the size and weight drawn."""
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"
