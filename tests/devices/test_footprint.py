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
        result = float(work.elements[kernel.output].at(sizes)[0])
        dying = [value for value in kernel.inputs if value not in later]
        in_place = kernel.kind == "reshape" or (
            kernel.kind in ("elementwise", "norm")
            and any(work.values[value].shape == work.values[kernel.output].shape for value in dying)
        )
        if not (in_place and dying):
            peak = max(peak, sum(held.values()) + result)
        held[kernel.output] = result
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


def test_energy_by_hand() -> None:
    device = parse_device(
        'name = "x"\ntitle = "X"\nkind = "board"\nruntimes = ["onnxruntime"]\nidle_power_w = 3.0\n'
        "caches = [{level = 1, size_bytes = 4000}, {level = 2, size_bytes = 6000}]\n"
        "energy = {mac_pj = {float32 = 2.0}, byte_pj = {L1 = 1.0, L2 = 5.0, memory = 100.0}}\n"
    )
    work = workload(trace(nn.Sequential(nn.Linear(50, 40)), torch.randn(1, 50)))
    told = energy_mj(work, work.dense, elements(work, work.dense), figures(device), np.array([0.5]))
    weights, moved = 4 * 50 * 40, 4 * (50 + 40)
    assert told[0] == pytest.approx((50 * 40 * 2.0 + weights * 100.0 + moved * 1.0) / 1e9 + 3.0 * 0.5)
