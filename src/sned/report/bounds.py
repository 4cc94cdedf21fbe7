"""A page that shows what of the hardware bounds each layer of one network."""

from collections.abc import Sequence

from sned.devices import Cost, LayerCost
from sned.report.compose import roofs
from sned.report.figures import count, milliseconds, size
from sned.report.html import page
from sned.report.model import LayerLoss
from sned.report.roofline import of_layers


def to_page(cost: Cost, layers: Sequence[LayerCost], title: str) -> str:
    """Write one self-contained HTML page: the roofline picture, and a row a layer.

    Args:
        cost: the model that told the layers.
        layers: from `Cost.layers`.
        title: what the page is called.
    """
    rows = [
        (
            layer.module,
            layer.kind,
            layer.bound,
            milliseconds(layer.latency_ms),
            count(layer.macs),
            size(layer.bytes_moved),
        )
        for layer in layers
        if layer.latency_ms > 0
    ]
    losses = [
        LayerLoss(
            layer.module, layer.kind, layer.latency_ms, None, layer.macs, None, bound_before=layer.bound,
            bytes_before=layer.bytes_moved,
        )
        for layer in layers
    ]  # fmt: skip
    return page("bounds.html", title=title, cost=cost, rows=rows, picture=of_layers(roofs(cost), losses))
