"""What was asked, what was predicted, what was measured, and why each choice was made.

In: the figures of a run. Out: `Report`, which is plain data; as JSON, as one HTML file, or as a table in a
terminal.
"""

from sned.report.environment import Environment, environment
from sned.report.html import to_html
from sned.report.model import (
    Asked,
    Check,
    Curve,
    GroupLoss,
    LayerLoss,
    Point,
    Report,
    Roofs,
    State,
    from_json,
    to_json,
)

__all__ = [
    "Asked",
    "Check",
    "Curve",
    "Environment",
    "GroupLoss",
    "LayerLoss",
    "Point",
    "Report",
    "Roofs",
    "State",
    "environment",
    "from_json",
    "to_html",
    "to_json",
]
