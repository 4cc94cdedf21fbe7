"""The roofline picture, and the page of what bounds each layer."""

from dataclasses import replace

import numpy as np
import torch

from sned.devices import cost_model, find_device
from sned.graph import trace
from sned.report import LayerLoss, Report, Roofs, to_html
from sned.report.bounds import to_page
from sned.report.compose import roofs
from sned.report.roofline import draw, roofline_chart
from tests.devices.networks import Residual, trained

BOARD = Roofs("board-1", 32.0, {"L1": 64.0, "memory": 4.0}, ("its clock is not known, 1 GHz assumed",))


def test_layers_stand_under_the_roofs() -> None:
    picture = draw(BOARD, {"before": [(2.0, 5.0), (40.0, 30.0)], "after": [(0.2, 0.7)]})
    assert picture is not None
    assert picture.description == "Roofline of 3 layers on board-1."
    for name in ("compute", "L1", "memory", "before", "after"):
        assert name in picture.svg
    assert "mathdefault" not in picture.svg
    assert draw(BOARD, {"before": []}) is None


def test_a_report_without_roofs_has_no_picture(report: Report) -> None:
    assert roofline_chart(report) is None
    layer = LayerLoss("a", "conv", 1.0, 0.5, 1e6, 5e5, 10, 5, "compute", "memory", 1e5, 8e4)
    held = replace(report, roofs=BOARD, layers=(layer,))
    assert roofline_chart(held) is not None
    assert "What bounds each layer" in to_html(held)
    assert "What bounds each layer" not in to_html(report)


def test_the_page_of_a_network_names_every_layer_and_what_was_assumed() -> None:
    graph = trace(trained(Residual()), torch.randn(1, 3, 24, 24))
    cost = cost_model(graph, find_device("galaxy-a06"))
    layers = cost.layers(np.array([group.size for group in graph.groups], np.float64))
    page = to_page(cost, layers, "Residual on galaxy-a06")
    assert "<svg" in page
    for layer in (layer for layer in layers if layer.latency_ms > 0):
        assert f"<code>{layer.module}</code>" in page
    assert "its memory bandwidth is not known, 30 GB/s assumed" in page
    assert "an estimate from the device&#39;s data sheet" in page
    assert roofs(cost).gb_s["memory"] == cost.figures.bytes_per_us[-1] / 1e3
