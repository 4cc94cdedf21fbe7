"""What a run is told of: plans that gain nothing, and where plans stand on the stairs of the kernels."""

from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import sned
from sned.devices import Budget, cost_model, find_device, find_devices
from sned.graph import Graph, trace
from sned.report.compose import stairs
from sned.report.html import to_html
from sned.report.rows import rows, verdicts
from sned.report.table import to_table
from tests.devices.networks import Residual, sizes, trained


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(trained(Residual()), torch.randn(1, 3, 24, 24))


def test_a_plan_that_gains_nothing_says_so_first_and_names_the_layers() -> None:
    """One channel less of 64: the tiles of eight stay as many as they were."""
    model, example = trained(Residual()), torch.randn(1, 3, 24, 24)
    report = sned.prune(model, example, budget=Budget(sparsity=0.03, device="raspberry-pi-4")).report
    assert report.after.parameters is not None
    assert report.before.parameters is not None
    assert report.after.parameters < report.before.parameters
    assert report.warning.startswith("This plan removes parameters and gains no latency: ")
    assert "(estimated). Smaller, and no faster: blocks." in report.warning
    assert "blocks.2.conv2 (conv, waits for compute)" in report.warning
    first = next(iter(to_table(report).renderables))  # type: ignore[attr-defined]
    assert str(first) == report.warning


def test_a_plan_that_gains_something_does_not_warn() -> None:
    model, example = trained(Residual()), torch.randn(1, 3, 24, 24)
    report = sned.prune(model, example, budget=Budget(sparsity=0.5, device="raspberry-pi-4")).report
    assert report.warning == ""
    assert report.before.latency is None
    assert report.asked.origin == "an estimate from the device's data sheet"


def test_a_set_is_told_of_device_by_device(graph: Graph) -> None:
    """The picture is of the device whose layers are told: the slowest; what was assumed is told of each, whole."""
    model, example = trained(Residual()), torch.randn(1, 3, 24, 24)
    report = sned.prune(model, example, budget=Budget(sparsity=0.5, device="samsung-iphone-2026")).report
    members = [cost_model(graph, device) for device in find_devices("samsung-iphone-2026")]
    slowest = max(members, key=lambda cost: float(cost.evaluate(sizes(graph)).latency_ms[0]))
    assert report.roofs is not None
    assert report.roofs.device == slowest.device
    assert f"By the data sheet, an estimate, of {slowest.device}." in to_html(report)
    assert "and figures for 45 nm where it has none" in to_html(report)
    for cost in members:
        assert f"Assumed of '{cost.device}': {'; '.join(cost.assumed)}." in report.notes
    assert (
        report.asked.energy
        == "an estimate from the device's data sheet, and figures for 45 nm where it has none"
    )


def test_a_size_in_eight_bits_is_not_that_of_the_file(tmp_path: Path) -> None:
    """As many bytes as the files, which are float32, hold numbers."""
    budget = Budget(size_bytes="50%", dtype="int8", device="pixel-9")
    report = sned.prune(trained(Residual()), torch.randn(1, 3, 24, 24), budget=budget, out=tmp_path).report
    held = {name: onnx.load(tmp_path / name).graph.initializer for name in ("dense.onnx", "model.onnx")}
    numbers = {
        name: sum(prod(tensor.dims) for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT)
        for name, tensors in held.items()
    }
    assert (report.before.size_bytes, report.after.size_bytes) == (
        numbers["dense.onnx"],
        numbers["model.onnx"],
    )
    [verdict] = verdicts(report)
    assert verdict.met
    assert verdict.sentence.endswith("kB counted")
    assert "its weights in int8, counted" in {row.how for row in rows(report)}
    assert "onnxruntime, int8, batch 1, 1 thread" in to_html(report)


def test_where_a_plan_stands_on_the_stairs(graph: Graph) -> None:
    cost = cost_model(graph, find_device("raspberry-pi-4"))
    counts = sizes(graph).astype(np.int64)
    assert stairs(graph, cost, counts) == ()
    counts[1] = 24  # three tiles of eight, in the first block
    [said] = stairs(graph, cost, counts)
    assert said.startswith("1 of 1 cut groups keep as many units as their kernels compute at once")


def test_a_latency_budget_stops_at_whole_tiles() -> None:
    """Channels snap to what kernels like, because what they round up costs little; a ranking looks at no cost."""
    torch.manual_seed(0)
    graph = trace(Residual().eval(), torch.randn(1, 3, 24, 24))
    cost = cost_model(graph, find_device("raspberry-pi-4"))
    budget = Budget(latency_ms="65%", device="raspberry-pi-4")
    plan = sned.plan(graph, budget=budget, rules={"protect": ["stem.0"]}, search_by="knapsack")
    kept = plan.counts(graph)
    cut = [(int(count), int(size)) for count, size in zip(kept, sizes(graph), strict=True) if count < size]
    assert cut
    assert sum(count % 8 == 0 for count, _ in cut) >= len(cut) / 2
    assert any("kernels compute at once" in said for said in stairs(graph, cost, kept))
