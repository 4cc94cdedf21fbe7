"""Peak memory against a run that frees what nobody reads any more; energy against a sum by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from sned.devices.figures import figures
from sned.devices.footprint import elements, energy_mj, peak_elements
from sned.devices.kernel_rules import workload
from sned.devices.kernels import Workload
from sned.devices.profile import parse_device
from sned.graph import trace
from tests.devices.networks import Mixed, Residual, trained


def simulated(work: Workload, sizes: np.ndarray) -> float:
    """Elements held at most, one step after the other, with nothing clever."""
    held = {value: float(work.elements[value].at(sizes)[0]) for value in work.inputs}
    peak = sum(held.values())
    for step, kernel in enumerate(work.kernels):
        later = {value for other in work.kernels[step + 1 :] for value in other.inputs} | set(work.outputs)
        written = [value for value in (kernel.output, *kernel.further) if value in later]
        results = {value: float(work.elements[value].at(sizes)[0]) for value in written}
        dying = [value for value in kernel.inputs if value not in later]
        in_place = kernel.kind == "reshape" or (
            kernel.kind in ("elementwise", "norm")
            and any(work.values[value].shape == work.values[kernel.output].shape for value in dying)
        )
        if not (in_place and dying):
            peak = max(peak, sum(held.values()) + sum(results.values()))
        held |= results
        for value in dying:
            held.pop(value, None)
        peak = max(peak, sum(held.values()))
    return peak


@pytest.mark.parametrize("make", [Residual, Mixed])
def test_the_peak_is_that_of_a_run(make: type[nn.Module]) -> None:
    work = workload(trace(trained(make()), torch.randn(1, 3, 24, 24)))
    for sizes in (work.dense, work.least):
        assert peak_elements(work, elements(work, sizes))[0] == pytest.approx(simulated(work, sizes))


def test_a_chain_holds_the_two_sides_of_its_widest_layer() -> None:
    network = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    work = workload(trace(network, torch.randn(1, 6)))
    assert peak_elements(work, elements(work, work.dense))[0] == 10 + 20


class Halves(nn.Module):
    """A product of the halves of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 20), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.layer(x).chunk(2, dim=1)
        return self.head(left * right)


def test_all_parts_of_a_split_are_held() -> None:
    work = workload(trace(Halves(), torch.randn(1, 6)))
    assert peak_elements(work, elements(work, work.dense))[0] == 20 + 2 * 10


def test_what_recurrent_layers_answer_is_held_as_a_whole() -> None:
    network, steps, units = nn.LSTM(4, 24, batch_first=True), 9, 24
    work = workload(trace(network, torch.randn(1, steps, 4)))
    assert (
        peak_elements(work, elements(work, work.dense))[0] >= 2 * steps * units
    )  # each step's, and all in one tensor


PROFILE = """
name = "x"
title = "X"
kind = "board"
runtimes = ["onnxruntime"]
idle_power_w = 3.0
caches = [{level = 1, size_bytes = 4000}, {level = 2, size_bytes = 6000}]
energy = {mac_pj = {float32 = 2.0}, byte_pj = {L1 = 1.0, L2 = 5.0, memory = 100.0}}
"""


def test_energy_by_hand() -> None:
    device = parse_device(PROFILE)
    work = workload(trace(nn.Sequential(nn.Linear(50, 40)), torch.randn(1, 50)))
    told = energy_mj(work, work.dense, elements(work, work.dense), figures(device), np.array([0.5]))
    weights, moved = 4 * 50 * 40, 4 * (50 + 40)
    assert told[0] == pytest.approx((50 * 40 * 2.0 + weights * 100.0 + moved * 1.0) / 1e9 + 3.0 * 0.5)


def test_weights_that_are_read_twice_are_moved_twice_from_where_they_lie_once() -> None:
    layer = nn.Linear(36, 36, bias=False)
    work = workload(trace(nn.Sequential(layer, layer), torch.randn(1, 36)))
    told = energy_mj(
        work, work.dense, elements(work, work.dense), figures(parse_device(PROFILE)), np.array([0.0])
    )
    weights, moved = (
        4 * 36 * 36,
        4 * 2 * 36,
    )  # 5,184 bytes: the second level holds them, and not twice as many
    assert told[0] == pytest.approx(2 * (36 * 36 * 2.0 + weights * 5.0 + moved * 1.0) / 1e9)


def test_energy_of_a_split_counts_all_parts() -> None:
    device = parse_device(PROFILE)
    work = workload(trace(Halves(), torch.randn(1, 6)))
    told = energy_mj(work, work.dense, elements(work, work.dense), figures(device), np.array([0.0]))
    macs = weights = 6 * 20 + 10 * 3
    moved = (6 + 20) + (20 + 10 + 10) + (10 + 10 + 10) + (10 + 3)
    assert told[0] == pytest.approx((macs * 2.0 + 4 * weights * 1.0 + 4 * moved * 1.0) / 1e9)
