"""The report as one HTML file that needs nothing else: no script, no font, no network."""

from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sned.report.charts import curve_chart, group_chart, latency_chart, layer_chart
from sned.report.deployments import HEADINGS, deployment_row
from sned.report.figures import count, label, percent, significant, written
from sned.report.model import Report
from sned.report.roofline import roofline_chart
from sned.report.rows import headline, rows, verdicts
from sned.report.svg import Picture
from sned.report.table import noise

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Figure:
    """A picture in the page, under its heading, with a sentence that says how to read it."""

    title: str
    reading: str
    picture: Picture


def to_html(report: Report) -> str:
    """Write a report as one self-contained HTML page, readable in light and dark.

    Example:
        atomic_write_text("report.html", to_html(result.report))
    """
    return page(
        "report.html",
        report=report,
        headline=headline(report),
        rows=rows(report),
        verdicts=verdicts(report),
        noise=noise(report),
        figures=_figures(report),
        asked=_asked(report),
        headings=astuple(HEADINGS)[1:],
        deployments=[astuple(deployment_row(found)) for found in report.deployments],
    )


def page(template: str, **values: Any) -> str:
    """Fill a template of the folder `page`."""
    return _environment().get_template(template).render(**values)


def _figures(report: Report) -> list[Figure]:
    budget = ", ".join(f"{name} {value}" for name, value in report.asked.budget.items()) or "nothing"
    candidates = (
        (
            "The trade-off",
            "Each point is a plan that could have been chosen; further left is faster, further up is better.",
            curve_chart(report),
        ),
        (
            "Predicted beside measured",
            "Hatched: what the cost model said before anything was built. Filled: the median in the "
            "runtime, with a "
            "line from the 10th to the 90th percentile.",
            latency_chart(report),
        ),
        (
            "What each group lost",
            f"A group is a set of units that must go together. The budget ({budget}) decided how many, "
            "the importance of the units which.",
            group_chart(report.groups),
        ),
        (
            "Where the time goes",
            "Predicted latency of each layer, before and after; small ones together.",
            layer_chart(report.layers),
        ),
        (
            "What bounds each layer",
            "Each point is a layer: how much it computes for each byte that it moves, and how fast. The lines are what "
            "the device's profile allows: a layer under a slope waits for that memory, under the flat line for "
            "arithmetic, far below both for the op to begin. By the data sheet, an estimate"
            f"{f', of {report.roofs.device}' if report.roofs else ''}.",
            roofline_chart(report),
        ),
    )
    return [Figure(title, reading, picture) for title, reading, picture in candidates if picture is not None]


def _asked(report: Report) -> list[tuple[str, str]]:
    """What was asked, as pairs of a term and its value."""
    asked = report.asked
    budget = [(label(name), _written_limit(report, name, value)) for name, value in asked.budget.items()]
    return [
        ("Model", asked.model),
        ("Example", asked.example),
        *budget,
        ("Device", asked.device),
        (
            "Runtime",
            f"{asked.runtime}, {asked.dtype}, batch {asked.batch}, {asked.threads} thread{'s'[: asked.threads != 1]}",
        ),
        ("Calibration", asked.calibration),
    ]


def _written_limit(report: Report, name: str, value: str) -> str:
    limit = report.asked.limits.get(name)
    return (
        value
        if limit is None
        else f"{value} = {written(name, limit)}"
        if "%" in value
        else written(name, limit)
    )


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    # Imported late: who only reads figures needs no templates.
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("sned.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "significant": significant,
        "markup": Markup,
    }
    return environment
