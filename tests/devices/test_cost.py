"""Cost models, on times really measured: consistent, fast, cached, and near what the network takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from sned.devices import Cost, Device, cold, cost_model, find_device, probe
from sned.devices.budget import AMOUNTS
from sned.devices.host import call_us
from sned.devices.layout import Family
from sned.devices.probe import Fetching, block_size, environment, nodes, open_op, yardstick
from sned.devices.profile import parse_device
from sned.devices.store import Store
from sned.devices.timer import CALLED, YARDSTICK, runner
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
    (label, total), points = progress.told[0], sum(t.values.size for t in dict.fromkeys(cost.tables.tables))
    assert label == "measuring ops"
    # Times that were disturbed are not kept, so on a busy machine a few are taken again.
    assert total is not None
    assert total < points / 2
    assert progress.done <= total
    assert again.evaluate(plans).latency_ms / cost.evaluate(plans).latency_ms == pytest.approx(1, rel=0.7)


def test_the_yardstick_is_timed_anew_and_not_kept(graph: Graph, folder: Path, host: Device) -> None:
    store = Store.open(environment(1), folder)
    model = cost_model(graph, host, seconds=0.0, store=store)
    assert model.tables.yardstick_us > 0
    assert not [key for key in store.yardsticks if key.startswith(YARDSTICK) and key not in CALLED]


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


def away(**changes: Any) -> cold.Cold:
    """Weights of 1 MB are near, those of 4 MB as far as they get; in 1 ms as far as twice as many, in 4 ms four times."""
    held = cold.Cold(
        np.array([1e6, 4e6]),
        {"window": np.array([0.0, 1e-4])},
        {"window": 1.0, "rows": 1.0},
        np.array([1e3, 4e3]),
        np.array([2.0, 4.0]),
    )
    return replace(held, **changes)


def test_ops_of_large_networks_find_their_weights_further_away() -> None:
    held, own = away(), np.array([0.0, 1e5, 4e6])
    for footprint, share in ((1e6, 0.0), (2e6, 0.5), (4e6, 1.0), (9e6, 1.0)):
        far = held.reach(np.array([footprint]), np.zeros(1))
        np.testing.assert_allclose(held.lost_us(far, own, "window"), [0, 11 * share, 0])


def test_ops_of_slow_networks_do_so_too() -> None:
    age = np.array([0.0, 500.0, 1000.0, 2000.0, 9000.0])
    np.testing.assert_allclose(away().reach(np.full(5, 1e5), age), [1e5, 1.5e5, 2e5, 3e5, 4e5])


def test_how_much_hangs_on_the_way_in_which_weights_are_gone_through() -> None:
    held = away(stream_us={"window": np.array([0.0, 1e-4]), "rows": np.array([2e-5, 3e-5])})
    lost = [
        held.lost_us(np.array([footprint]), np.array([1e5]), way).item()
        for footprint in (1e6, 4e6)
        for way in ("window", "rows", "points")
    ]
    near = 2e-5 * 0.1  # what its own bytes lose alone
    rows = [(rate - near) * 1e5 + (rate - near) / 3e-5 for rate in (2e-5, 3e-5)]
    np.testing.assert_allclose(lost, [0, rows[0], 0, 1 + 10, rows[1], 1 + 10])


@pytest.mark.parametrize(
    ("recipe", "kernel", "uses", "way"),
    [
        ("blocked_conv", (3, 3), 49.0, "window"), ("direct_conv", (1, 1), 49.0, "points"),
        ("plain_conv", (1, 1), 1.0, "place"), ("direct_conv", (1, 1), 1.0, "place"), ("plain_conv", (1, 1), 9.0, "plain points"),
        ("plain_grouped", (3, 1), 9.0, "plain window"), ("deconv", (2, 2), 9.0, "plain window"),
        ("gemm", (), 50.0, "rows"), ("gemm", (), 1.0, "row"), ("blocked_conv", (1, 3), 9.0, "window"),
    ],
)  # fmt: skip
def test_ways_to_go_through_weights(recipe: str, kernel: tuple[int, ...], uses: float, way: Fetching) -> None:
    assert cold.fetching(Family(recipe, (("kernel", kernel),)), uses) == way


def test_chains_tell_what_is_lost_by_bytes_and_by_time() -> None:
    streams = {
        "window": 200.0, "points": 90.0, "rows": 40.0, "row": 17.0, "plain window": 30.0, "plain points": 70.0,
        "place": 20.0,
    }  # fmt: skip
    begins = {way: 3.0 + place for place, way in enumerate(streams)}
    late, soon = np.array([0, 0, 0, 0, 0.5, 0.8, 0.9, 1]), np.array([0, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 1])
    shares = {way: soon if way.startswith("plain") else late for way in streams}
    known = {
        cold.chain_key(way, mb): (30.0 + share * (begins[way] + stream)) * probe.chain_length(mb)
        for way, stream in streams.items()
        for mb, share in zip(cold.FOOTPRINTS_MB, shares[way], strict=True)
    }
    known |= {
        cold.chain_key(way, mb, long=True): (99.0 + far * (begins[way] + 4 * stream))
        * probe.chain_length(mb, long=True)
        for way, stream in streams.items()
        for mb, far in zip(cold.ends(), (0, 1), strict=True)
    }
    aged = np.array([0.0, 0.5, 0.5, 0.65, 0.8, 1.0])
    for age, share in zip(cold.AGES, aged, strict=True):
        known[cold.aged_key(age, bare=True)] = 100.0 * age
        chained = (30.0 + share * (begins["row"] + streams["row"])) * probe.chain_length(probe.AGED_MB)
        known[cold.aged_key(age)] = 100.0 * age + chained
    found = cold.cold_of({name: took + 5.0 for name, took in known.items()}, 5.0, 100.0)
    assert found.begin_us == pytest.approx(begins)
    for way, stream in streams.items():
        np.testing.assert_allclose(
            found.stream_us[way] * probe.CHAIN_BYTES,  # type: ignore[index]
            stream * shares[way], atol=1e-9,
        )  # fmt: skip
    np.testing.assert_allclose(found.aged, [1, 2, 2, 2 * 2**0.5, 4, 16])


@pytest.mark.parametrize("way", probe.FETCHING)
def test_no_two_ops_of_a_chain_have_the_same_weights(way: Fetching) -> None:
    """A runtime holds equal weights once, and would not fetch them from afar."""
    model = probe.chain(way, 1.3, 1)
    weights = [to_array(w) for w in model.graph.initializer if w.name.startswith("w")]
    assert len(weights) == 9
    assert {w.nbytes for w in weights} == {probe.CHAIN_BYTES}
    assert len({float(w.flat[0]) for w in weights}) == 9
    open_op(model, 1)


def test_a_call_wakes_the_other_threads() -> None:
    known = {"nodes 1": 2.0, "nodes 9": 3.6, "call": 4.0, YARDSTICK: 112.0, "yardstick called": 150.0}
    assert call_us(known, 1) == pytest.approx(3.8)
    assert call_us(known, 2) == pytest.approx(150 - 112)
    assert call_us({**known, "yardstick called": 110.0}, 2) == pytest.approx(3.8)


class Unusual(nn.Module):
    """Ops that the cost model has no name for."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.atan(self.into(x))
        return self.out(y.index_add_(0, torch.tensor([1, 0]), y * 2))


def test_a_step_is_called_by_what_it_does_also_where_its_time_is_that_of_another() -> None:
    layers = cost_model(trace(Unusual().eval(), torch.randn(2, 4)), find_device("pixel-9")).layers(
        np.array([8.0])
    )
    assert [layer.kind for layer in layers] == ["call", "linear", "atan", "mul", "index_add", "linear"]
