"""What was asked, what was predicted, what was measured, and why each choice was made.

In: the figures of a run. Out: `Report`, which is plain data; as JSON, as one HTML file, or as a table in a
terminal.
"""

from sned.report.deployments import deployment, deployments_table
from sned.report.environment import Environment, environment
from sned.report.html import to_html
from sned.report.model import (
    Asked,
    Check,
    Curve,
    Deployment,
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
    "Deployment",
    "Environment",
    "GroupLoss",
    "LayerLoss",
    "Point",
    "Report",
    "Roofs",
    "State",
    "deployment",
    "deployments_table",
    "environment",
    "from_json",
    "to_html",
    "to_json",
]
