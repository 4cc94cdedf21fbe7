"""What ops ask for, against counts written out by hand and the MACs that the graph tells."""

import numpy as np
import pytest
import torch

from sned.devices.demand import demand
from sned.devices.kernel_rules import workload
from sned.devices.layout import Family, launches
from sned.graph import trace
from tests.devices.networks import Mixed, Residual, trained

WINDOW = (("kernel", (3, 3)), ("output", (8, 8)), ("spatial", (16, 16)))


def widths(*values: float) -> list[np.ndarray]:
    return [np.array([value]) for value in values]


def family(recipe: str, *more: tuple[str, object]) -> Family:
    return Family(recipe, (*WINDOW, *more))  # type: ignore[arg-type]


def test_a_convolution_rounds_its_outputs_up_and_reads_what_it_reads() -> None:
    asked = demand(family("direct_conv", ("activation", "")), widths(2, 3, 20), 16)
    assert asked.macs == 2 * 3 * 20 * 9 * 64
    assert asked.padded == 2 * 3 * 32 * 9 * 64
    assert asked.read == 2 * 3 * 256
    assert asked.written == 2 * 20 * 64
    assert asked.weights == 3 * 20 * 9
    assert asked.operations == 0


def test_a_blocked_convolution_rounds_its_inputs_too() -> None:
    asked = demand(family("blocked_conv", ("activation", "Sigmoid")), widths(1, 20, 16), 16)
    assert asked.padded == 32 * 16 * 9 * 64
    assert asked.operations == 12 * 16 * 64


def test_a_plain_convolution_writes_out_its_patches() -> None:
    asked = demand(family("plain_conv", ("activation", "")), widths(1, 4, 8), 1)
    assert asked.read == 4 * 256 + 2 * 4 * 9 * 64
    assert asked.padded == asked.macs


def test_products_of_matrices() -> None:
    asked = demand(Family("gemm"), widths(5, 7, 9), 8)
    assert (asked.macs, asked.padded, asked.weights) == (5 * 7 * 9, 5 * 7 * 16, 63)
    asked = demand(Family("matmul"), widths(2, 5, 7, 8), 8)
    assert (asked.macs, asked.read, asked.written, asked.weights) == (2 * 5 * 7 * 8, 2 * 7 * 13, 2 * 5 * 8, 0)


@pytest.mark.parametrize("block", [1, 8, 16])
@pytest.mark.parametrize("make", [Residual, Mixed])
def test_launches_ask_for_the_macs_that_the_graph_tells(make: type[torch.nn.Module], block: int) -> None:
    work = workload(trace(trained(make()), torch.randn(1, 3, 24, 24)))
    sizes = np.concatenate([work.dense, work.least])
    asked = np.zeros(2)
    for launch in launches(work, sizes, block):
        needed = demand(launch.family, launch.widths, block)
        if (
            work.kernels[launch.kernel].kind != "norm"
        ):  # done as a convolution, its multiplications are no MACs
            asked += np.where(launch.where, needed.macs, 0.0)
        assert (needed.padded >= needed.macs).all()
        assert all((np.asarray(values) >= 0).all() for values in vars(needed).values())
    told = sum(kernel.macs.at(sizes) for kernel in work.kernels)
    np.testing.assert_allclose(asked, told)
