"""Cost models, on times really measured: consistent, fast, cached, and near what the network takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sned.devices import Cost, Device, cold, cost_model, find_device, probe
from sned.devices.budget import AMOUNTS
from sned.devices.host import call_us
from sned.devices.probe import block_size, environment, nodes, open_op, yardstick
from sned.devices.profile import parse_device
from sned.devices.store import Store
from sned.devices.timer import YARDSTICK, runner
from sned.errors import DeviceError, MeasureError, PlanError
from sned.graph import Graph, trace
from sned.progress import Advance
from sned.runtime import open_session
from sned.timing import interleaved
from tests.devices.networks import Residual, random_counts, sizes, trained

INPUTS = torch.randn(1, 3, 24, 24)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(trained(Residual()), INPUTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def host() -> Device:
    return find_device("host")


@pytest.fixture(scope="module")
def cost(graph: Graph, folder: Path, host: Device) -> Cost:
    return cost_model(graph, host, seconds=2.0, store=Store.open(environment(1), folder))


@pytest.fixture(scope="module")
def plans(graph: Graph) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rng = np.random.default_rng(0)
    return np.array([sizes(graph), *(random_counts(graph, rng) for _ in range(40))])


@pytest.mark.filterwarnings("ignore")
def test_the_network_takes_about_as_long_as_predicted(graph: Graph, cost: Cost, tmp_path: Path) -> None:
    """Within a factor of two only, and in yardsticks, because the machine that runs the tests may be busy."""
    path = tmp_path / "model.onnx"
    torch.onnx.export(trained(Residual()), (INPUTS,), str(path), dynamo=False)
    session = open_session(path)
    run = partial(session.run, None, {session.get_inputs()[0].name: INPUTS.numpy()})
    standard = runner(yardstick(cost.tables.block), 1)
    times = interleaved({"network": run, "yardstick": standard}, runs=60, settle_ms=1.0)
    predicted = cost.evaluate(sizes(graph)).latency_ms[0] / cost.tables.yardstick_us
    measured = times["network"].p10_ms / times["yardstick"].p10_ms / 1e3
    assert 0.5 < predicted / measured < 2


def test_wider_is_slower_where_widths_fill_their_blocks(graph: Graph, cost: Cost) -> None:
    counts = np.array([np.rint(sizes(graph) * share) for share in (0.5, 1.0)])
    narrow, wide = cost.evaluate(counts).latency_ms
    assert narrow < wide


def test_layers_add_up_to_the_plan(cost: Cost, plans: np.ndarray) -> None:
    whole = cost.evaluate(plans[:5])
    for index, counts in enumerate(plans[:5]):
        layers = cost.layers(counts)
        assert sum(layer.latency_ms for layer in layers) == pytest.approx(whole.latency_ms[index])
        assert sum(layer.macs for layer in layers) == whole.macs[index]
        assert sum(layer.parameters for layer in layers) == whole.parameters[index]
    assert [layer.module for layer in layers if layer.kind == "conv"] == [
        "stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.down",
        "blocks.2.conv1", "blocks.2.conv2",
    ]  # fmt: skip


def test_a_plan_costs_the_same_in_any_company(cost: Cost, plans: np.ndarray) -> None:
    together = cost.evaluate(plans)
    for index in (0, 7, 40):
        alone = cost.evaluate(plans[index : index + 1]).at(0)
        assert alone == pytest.approx(together.at(index))
    many = cost.evaluate(np.repeat(plans[3:4], 5000, axis=0))
    assert many.latency_ms == pytest.approx(together.latency_ms[3])


def test_everything_that_a_budget_can_limit_is_told(cost: Cost, plans: np.ndarray) -> None:
    costs = cost.evaluate(plans[:2])
    assert set(costs.at(1)) == set(AMOUNTS)
    assert all(value > 0 for value in costs.at(1).values())


def test_twenty_thousand_plans_a_second(cost: Cost, graph: Graph) -> None:
    plans = np.rint(np.random.default_rng(0).uniform(1, sizes(graph), (20_000, len(graph.groups))))
    start = time.process_time()
    latency = cost.evaluate(plans).latency_ms
    assert time.process_time() - start < 1.0
    assert (latency > 0).all()


def test_anchored_at_a_measurement(cost: Cost, plans: np.ndarray) -> None:
    anchored = cost.anchored(plans[0], 3.0)
    assert anchored.evaluate(plans).latency_ms[0] == pytest.approx(3.0)
    ratio = anchored.evaluate(plans).latency_ms / cost.evaluate(plans).latency_ms
    np.testing.assert_allclose(ratio, ratio[0])
    assert sum(layer.latency_ms for layer in anchored.layers(plans[0])) == pytest.approx(3.0)
    larger = cost.evaluate(plans).size_bytes + 5000
    anchored = anchored.anchored(plans[0], 3.0, size_bytes=larger[0])
    np.testing.assert_allclose(anchored.evaluate(plans).size_bytes, larger)


class Counter:
    """A progress display that counts."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float | None]] = []
        self.done = 0.0

    @contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Advance]:
        self.told.append((label, total))

        def advance(amount: float = 1, /) -> None:
            self.done += amount

        yield advance


def test_the_second_time_little_is_measured(
    graph: Graph, folder: Path, host: Device, cost: Cost, plans: np.ndarray
) -> None:
    progress = Counter()
    again = cost_model(graph, host, seconds=2.0, store=Store.open(environment(1), folder), progress=progress)
    (label, total), points = progress.told[0], sum(table.values.size for table in cost.tables.tables.values())
    assert label == "measuring ops"
    # Times that were disturbed are not kept, so on a busy machine a few are taken again.
    assert total is not None
    assert total < points / 2
    assert progress.done <= total
    assert again.evaluate(plans).latency_ms / cost.evaluate(plans).latency_ms == pytest.approx(1, rel=0.7)


def test_the_yardstick_takes_out_the_speed_of_the_machine(graph: Graph, folder: Path, host: Device) -> None:
    store = Store.open(environment(1), folder)
    model = cost_model(graph, host, seconds=0.0, store=store)
    assert model.tables.yardstick_us > 0
    assert store.yardsticks["yardstick"] == 1.0


def test_devices_that_cannot_be_measured(graph: Graph) -> None:
    phone = parse_device('name = "phone-1"\ntitle = "A phone"\nkind = "phone"\nruntimes = ["coreml"]')
    with pytest.raises(
        DeviceError, match=r"can be measured on this machine .* got 'phone-1', coreml and float32"
    ):
        cost_model(graph, phone, runtime="coreml", basis="measured")
    with pytest.raises(
        DeviceError, match=r"`runtime` must be one that 'phone-1' has \(coreml\), got 'onnxruntime'"
    ):
        cost_model(graph, phone)


def test_more_threads_than_cores(graph: Graph, host: Device) -> None:
    with pytest.raises(
        DeviceError, match=r"`threads` must lie between 1 and the \d+ cores of 'host', got 4096"
    ):
        cost_model(graph, host, threads=4096)
    with pytest.raises(DeviceError, match=r"`batch` must be at least 1, got 0\."):
        cost_model(graph, host, batch=0)


def test_counts_that_cannot_be(cost: Cost, graph: Graph) -> None:
    dense = sizes(graph)
    with pytest.raises(PlanError, match=r"a column for each of the 5 groups, got shape \(1, 4\)"):
        cost.evaluate(dense[:4])
    too_many = dense.copy()
    too_many[2] += 1
    with pytest.raises(PlanError, match=r"between 1 and 64 in group 2, got 65 in plan 1"):
        cost.evaluate(np.stack([dense, too_many]))
    with pytest.raises(PlanError, match=r"between 1 and 32 in group 0, got 0 in plan 0"):
        cost.evaluate(np.zeros_like(dense))


def test_an_op_is_opened_as_it_is() -> None:
    session = open_op(nodes(3), 1)
    np.testing.assert_allclose(
        session.run(None, {"x": np.ones(1, np.float32)})[0], np.sin(np.sin(np.sin(1.0))), rtol=1e-6
    )


def test_an_op_that_the_runtime_does_not_know() -> None:
    model = nodes(1)
    model.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(
        MeasureError, match=r"The time of Frobnicate must be measured, but ONNX Runtime .* does not run"
    ):
        open_op(model, 1)


def test_the_block_is_one_that_runtimes_use() -> None:
    assert block_size() in (1, 8, 16)


def test_what_larger_chains_lose_never_falls_and_forgets_disturbances() -> None:
    lost = cold._lost(np.array([1.1, 1.0, 1.2, 9.0, 2.0, 2.1]))
    np.testing.assert_allclose(lost, [0.0, 0.0, 0.2, 1.0, 1.0, 1.1])


def test_ops_of_large_networks_find_their_weights_further_away() -> None:
    held = cold.Cold(np.array([1e6, 4e6]), np.array([0.0, 1.0]), np.array([0.0, 1e-4]))
    own, rows = np.array([0.0, 1e5, 4e6]), np.full(3, 100.0)
    np.testing.assert_allclose(held.lost_us(np.full(3, 1e6), own, rows), [0, 0, 0])
    np.testing.assert_allclose(held.lost_us(np.full(3, 4e6), own, rows), [0, 1 + 10, 0])
    np.testing.assert_allclose(held.lost_us(np.full(3, 2e6), own, rows), [0, 0.5 + 5, 0])


def test_fetching_weights_hides_behind_the_work_on_those_before() -> None:
    held = cold.Cold(np.array([1e6, 4e6]), np.array([0.0, 1.0]), np.array([0.0, 1e-4]), 0.2)
    own, rows = np.full(4, 1e5), np.array([1, 8, 64, 3136])
    lost = held.lost_us(np.full(4, 4e6), own, rows)
    np.testing.assert_allclose(lost, [1 + 10, 1 + 6, 1 + 2, 1 + 2])


@pytest.mark.parametrize(("more", "exposed"), [(400.0, 1.0), (103.0, 0.5), (6.0, 0.015), (-10.0, 0.0)])
def test_what_stays_hidden_is_told_by_a_chain_of_products(more: float, exposed: float) -> None:
    small, large = 0.3, 64.0
    counts = np.array([probe.chain_length(mb) for mb in (small, large)])
    begin, stream = np.array([0.0, 3.0]), np.array([0.0, 200.0])
    single = (30.0 + begin + stream) * counts
    paired = (32.0 + 2 * begin + stream) * counts
    known = {f"chain {mb}": took for mb, took in zip((small, large), single, strict=True)}
    known |= {f"paired chain {mb}": took for mb, took in zip((small, large), paired, strict=True)}
    known |= {
        f"chain of rows {small}": 120.0 * counts[0],
        f"chain of rows {large}": (120.0 + more) * counts[1],
    }
    found = cold.cold_of((small, large), known, 0.0)
    np.testing.assert_allclose(found.begin_us, begin)
    np.testing.assert_allclose(found.stream_us * probe.CHAIN_BYTES, stream)
    assert found.exposed == pytest.approx(exposed)


def test_networks_of_one_size_hide_nothing() -> None:
    known = {f"{kind}chain 0.3": 60.0 for kind in ("", "paired ")}
    known["chain of rows 0.3"] = 60.0
    assert cold.cold_of((0.3,), known, 0.0).exposed == 1


def test_a_call_wakes_the_other_threads() -> None:
    known = {"nodes 1": 2.0, "nodes 9": 3.6, "call": 4.0, YARDSTICK: 112.0, "yardstick called": 150.0}
    assert call_us(known, 1) == pytest.approx(3.8)
    assert call_us(known, 2) == pytest.approx(150 - 112)
    assert call_us({**known, "yardstick called": 110.0}, 2) == pytest.approx(3.8)
