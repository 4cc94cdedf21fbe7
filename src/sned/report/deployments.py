"""Exported files as rows of a report: one a file, each figure beside PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from sned.export import Exported, find_target
from sned.report.figures import NOTHING, milliseconds, percent, ratio, score, size
from sned.report.model import Deployment


@dataclass(frozen=True)
class DeploymentRow:
    """A `Deployment` as people read it; columns in the order in which they are shown."""

    name: str
    runtime: str
    size: str
    difference: str
    error: str
    agreement: str
    accuracy: str
    latency: str
    versus_torch: str


HEADINGS = DeploymentRow(
    "",
    "runtime",
    "size",
    "largest difference",
    "relative error",
    "same class",
    "accuracy",
    "latency",
    "to PyTorch",
)


def deployment(exported: Exported, name: str = "") -> Deployment:
    """What is told about an exported file."""
    return Deployment(
        name=name or exported.level or Path(exported.path).name,
        runtime=find_target(exported.target).title,
        precision=exported.precision,
        file=exported.path.name,
        size_bytes=exported.size_bytes,
        max_abs_diff=exported.parity.max_abs_diff,
        error=exported.parity.error,
        agreement=exported.parity.top1_agreement,
        latency=exported.latency,
        torch_latency=exported.torch_latency,
        accuracy=exported.accuracy,
        torch_accuracy=exported.torch_accuracy,
        notes=exported.notes,
    )


def deployment_row(found: Deployment) -> DeploymentRow:
    """A row of the table; what was not obtained is a dash."""
    latency, torch = found.latency, found.torch_latency
    before = "" if found.torch_accuracy is None else f" (model {score(found.torch_accuracy)})"
    return DeploymentRow(
        name=found.name,
        runtime=f"{found.runtime}, {found.precision}",
        size=size(found.size_bytes),
        difference=f"{found.max_abs_diff:.2g}",
        error=f"{found.error:.2g}",
        agreement=NOTHING if found.agreement is None else percent(found.agreement),
        accuracy=NOTHING if found.accuracy is None else f"{score(found.accuracy)}{before}",
        latency=NOTHING if latency is None else milliseconds(latency.median_ms),
        versus_torch=NOTHING
        if latency is None or torch is None
        else ratio(torch.median_ms, latency.median_ms),
    )


def deployments_table(found: Sequence[Deployment], title: str = "Exported files") -> Table:
    """The rows as a table for a terminal; remarks that several files share are said once, below."""
    notes = list(dict.fromkeys(note for one in found for note in one.notes))
    table = Table(title=title, title_justify="left", caption=escape("\n".join(f"· {note}" for note in notes)))
    table.caption_justify = "left"
    for heading in astuple(HEADINGS):
        table.add_column(heading, justify="left" if heading in ("", "runtime") else "right")
    for one in found:
        table.add_row(*(escape(cell) for cell in astuple(deployment_row(one))))
    return table
