"""Budgets on sets of devices, and on devices that can hold only so much."""

import re

import numpy as np
import pytest
import torch

import sned
from sned.devices import Budget, FleetCost, cost_for, find_device, limits_for
from sned.devices.model import batch_of
from sned.errors import BudgetError, DeviceError
from sned.graph import Graph, trace
from tests.devices.networks import Residual, sizes, trained


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(trained(Residual()), torch.randn(1, 3, 24, 24))


def test_a_relative_budget_holds_on_every_member(graph: Graph) -> None:
    budget = Budget(latency_ms="55%", device="phones-2026")
    plan = sned.plan(graph, budget=budget)
    cost = cost_for(graph, budget)
    assert isinstance(cost, FleetCost)
    kept = plan.counts(graph).astype(float)
    before, after = cost.evaluate(sizes(graph)), cost.evaluate(kept)
    assert len(after.members) == 12
    shares = {
        name: float(after.members[name].latency_ms[0] / before.members[name].latency_ms[0])
        for name in after.members
    }
    assert max(shares.values()) <= 0.55 * (1 + 1e-9)
    assert max(shares.values()) > 0.5
    assert after.latency_ms[0] == max(costs.latency_ms[0] for costs in after.members.values())
    assert after.macs[0] == after.members["pixel-9"].macs[0]
    slowest = cost_for(graph, Budget(macs=1, device="galaxy-a06"))
    assert cost.layers(kept) == slowest.layers(kept)
    assert cost.basis == "estimated"
    assert cost.origin.startswith("the most on any of 12 devices, an estimate")


def test_an_absolute_budget_holds_on_the_slowest(graph: Graph) -> None:
    slow = cost_for(graph, Budget(macs=1, device="galaxy-a06")).evaluate(sizes(graph)).latency_ms[0]
    budget = Budget(latency_ms=0.6 * slow, device="galaxy-a06,iphone-17")
    kept = sned.plan(graph, budget=budget).counts(graph).astype(float)
    members = cost_for(graph, budget).evaluate(kept).members
    assert members["iphone-17"].latency_ms[0] < members["galaxy-a06"].latency_ms[0] <= 0.6 * slow * (1 + 1e-9)


def test_what_cannot_be_met_names_the_device(graph: Graph) -> None:
    latency = {
        name: float(
            cost_for(graph, Budget(macs=1, device=name))
            .evaluate(np.array([[g.cell_count for g in graph.groups]]))
            .latency_ms[0]
        )
        for name in ("galaxy-a06", "iphone-17")
    }
    between = (latency["galaxy-a06"] + latency["iphone-17"]) / 2
    with pytest.raises(
        BudgetError, match=r"latency_ms on 'galaxy-a06' of at most .* by a plan that keeps 1 of 32"
    ) as raised:
        sned.plan(graph, budget=Budget(latency_ms=between, device="samsung-iphone-2026,galaxy-a06"))
    assert "iphone-17" not in str(raised.value)
    with pytest.raises(BudgetError, match=r"; and 9 more, by a plan"):
        sned.plan(graph, budget=Budget(latency_ms=1e-6, device="phones-2026"))


def test_energy_and_memory_can_be_limited(graph: Graph) -> None:
    for name in ("energy_mj", "peak_memory_bytes"):
        budget = Budget(device="raspberry-pi-4", threads=4, **{name: "60%"})
        kept = sned.plan(graph, budget=budget).counts(graph).astype(float)
        cost = cost_for(graph, budget)
        told = getattr(cost.evaluate(np.array([sizes(graph), kept[: len(kept)]])), name)
        assert told[1] <= 0.6 * told[0] * (1 + 1e-9)


def test_a_plan_must_fit_a_microcontroller(graph: Graph) -> None:
    budget = Budget(parameters="90%", device="nano-33-ble", runtime="litert-micro")
    cost = cost_for(graph, budget)
    dense = cost.evaluate(sizes(graph)).at(0)
    flash, ram = 1 << 20, 256 << 10
    assert cost.capacity == {"peak_memory_bytes": ram, "size_bytes": flash}
    assert limits_for(budget, cost, dense) == {
        "parameters": 0.9 * dense["parameters"], "peak_memory_bytes": ram, "size_bytes": flash,
    }  # fmt: skip
    assert limits_for(Budget(size_bytes=1000.0), cost, dense)["size_bytes"] == 1000.0
    wide = trace(trained(Residual(256)), torch.randn(1, 3, 48, 48))
    kept = sned.plan(wide, budget=budget).counts(wide).astype(float)
    costs = cost_for(wide, budget).evaluate(kept)
    assert (
        costs.peak_memory_bytes[0] <= ram < cost_for(wide, budget).evaluate(sizes(wide)).peak_memory_bytes[0]
    )
    assert costs.size_bytes[0] <= flash
    said, also = cost_for(wide, budget).costs[0].exceeded(cost_for(wide, budget).evaluate(sizes(wide)).at(0))
    assert re.match(
        r"peak_memory_bytes is [\d,]+, and the RAM of 'nano-33-ble' holds 262,144: .* as it is", said
    )
    assert "the flash of 'nano-33-ble' holds 1,048,576" in also
    assert cost.costs[0].exceeded(dense) == ()


def test_what_no_plan_fits_into_is_the_limit_of_the_device() -> None:
    """Three channels of 200 by 200 floats are 480,000 bytes, whatever is pruned behind them."""
    large = trace(trained(Residual()), torch.randn(1, 3, 200, 200))
    asked = {"device": "nano-33-ble", "runtime": "litert-micro"}
    with pytest.raises(
        BudgetError,
        match=r"peak_memory_bytes of at most 262,144 fits into the RAM of the device, .* Only so much fits into the RAM of "
        "the device: give the network a smaller input",
    ):
        sned.plan(large, budget=Budget(macs="90%", **asked))
    with pytest.raises(BudgetError, match=r"of at most 1,000 was asked, .* Ask for more than that"):
        sned.plan(large, budget=Budget(peak_memory_bytes=1000, **asked))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"device": "nano-33-ble"},
            r"`runtime` must be one that 'nano-33-ble' has \(litert-micro\), got 'onnxruntime'",
        ),
        (
            {"device": "pixel-9", "threads": 9},
            r"`threads` must lie between 1 and the 8 cores of 'pixel-9', got 9",
        ),
        ({"device": "phones"}, "There is no device 'phones' in the catalogue. Did you mean 'phones-2026'"),
        ({"device": "my-board.toml"}, "The device profile 'my-board.toml' cannot be read"),
    ],
)
def test_what_a_device_cannot_do(graph: Graph, fields: dict[str, object], text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        sned.plan(graph, budget=Budget(latency_ms="50%", **fields))


def test_a_network_of_one_batch_size_only() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 16), torch.nn.Linear(48, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)).reshape(-1))

    fixed = trace(trained(Fixed()), torch.randn(3, 8))
    assert not fixed.batched
    with pytest.raises(
        DeviceError, match="runs at a batch size of 3 only, that of its example, got `batch` 5"
    ):
        cost_for(fixed, Budget(macs="50%", device="pixel-9", batch=5))
    assert find_device("pixel-9").cores == 8
    assert batch_of(fixed, 1) == 3
    assert batch_of(trace(trained(Residual()), torch.randn(2, 3, 8, 8)), 5) == 5
