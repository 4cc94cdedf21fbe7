"""The report as a table in a terminal."""

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sned.report.deployments import deployments_table
from sned.report.model import Report
from sned.report.rows import Verdict, rows, verdicts

WIDTH = 120
"""Characters a line of plain text, at most."""

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("?", "yellow")}


def to_table(report: Report) -> RenderableType:
    """Before, after, ratio and how each was obtained; below, whether what was asked was reached, and the notes."""
    table = Table(title=f"{report.asked.model} on {report.asked.device}", title_justify="left", expand=False)
    table.add_column("", no_wrap=True)
    for name in ("before", "after", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("how", style="dim")
    for row in rows(report):
        table.add_row(row.label, row.before, Text(row.after, "bold"), row.change, row.how)
    said = [Text(f"· {note}", "dim") for note in report.notes]
    first = [Text(report.warning, "bold yellow")] if report.warning else []
    files = [deployments_table(report.deployments)] if report.deployments else []
    marks = [_mark(verdict) for verdict in verdicts(report)]
    return Group(*first, table, *files, *marks, *_warnings(report), *said)


def to_text(report: Report) -> str:
    """The same without colours, for `print`."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(to_table(report))
    return captured.get().rstrip()


def noise(report: Report) -> str:
    """A warning where the measurements spread so widely that small differences mean nothing; else empty."""
    taken = (("before", report.before.latency), ("after", report.after.latency))
    noisy = [name for name, latency in taken if latency is not None and latency.noisy]
    if not noisy:
        return ""
    return (
        f"The machine was busy while the network was timed ({' and '.join(noisy)}): the 90th percentile "
        "lies far "
        "above the median. Close what else is running and measure again before trusting small differences."
    )


def _mark(verdict: Verdict) -> Text:
    mark, style = _MARKS[verdict.met]
    return Text.assemble((f"{mark} ", style), verdict.sentence)


def _warnings(report: Report) -> list[Text]:
    failed = [check for check in report.checks if not check.passed]
    texts = [f"Check failed: {check.name}. {check.detail}" for check in failed] + [noise(report)]
    return [Text(f"! {text}", "yellow") for text in texts if text]
