from pathlib import Path

import pytest
import torch

from benchmarks.data import cifar10
from benchmarks.networks import NETWORKS, trained
from benchmarks.peers import macs
from sned.demo import accuracy


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet20", 272_474), ("resnet56", 855_770), ("shufflenetv2_x0_5", 352_042)]
)
def test_sizes(name: str, parameters: int) -> None:
    network = NETWORKS[name]()
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_macs_of_resnet56_in_closed_form() -> None:
    stem = 32**2 * 9 * 3 * 16
    inner = 32**2 * 9 * 16 * 16  # the same in every stage: half the side, twice the width
    first_of_stage = inner // 2 + 16**2 * 16 * 32  # half as many input channels, and the projection
    assert macs(NETWORKS["resnet56"](), torch.zeros(2, 3, 32, 32)) == (
        stem + 18 * inner + 2 * (first_of_stage + 17 * inner) + 64 * 10
    )


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "known"), [("resnet20", 0.926), ("resnet56", 0.9437), ("shufflenetv2_x0_5", 0.9064)]
)
def test_the_public_weights_read_as_well_as_known(real_data: Path, name: str, known: float) -> None:
    """Of 500 images; the whole test set gives the known figure to the second decimal, in a minute."""
    images, labels = cifar10("test", real_data)
    assert accuracy(trained(name), images[:500], labels[:500]) == pytest.approx(known, abs=0.035)
