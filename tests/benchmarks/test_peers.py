import copy

import pytest
import torch
from torch import nn

from benchmarks.networks import CifarResNet
from benchmarks.peers import CRITERIA, macs, reestimate_batchnorm, torch_pruning
from sned.errors import BudgetError, NotFoundError

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(depth=1).eval()


def labelled() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_shot_lands_just_below_the_target(network: nn.Module, criterion: str) -> None:
    before = copy.deepcopy(network.state_dict())
    peer = torch_pruning(network, EXAMPLE, 0.5, criterion=criterion, ignored=["fc"], labelled=labelled())
    assert 0.4 * peer.dense_macs < peer.macs <= 0.5 * peer.dense_macs
    assert peer.macs == macs(peer.model, EXAMPLE)
    assert peer.dense_macs == macs(network, EXAMPLE)
    assert peer.model(EXAMPLE).shape == (1, 10)
    assert 0 < peer.pruning_ratio < 1
    assert all(value.grad is None for value in peer.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_little_by_little_stops_at_the_target(network: nn.Module) -> None:
    peer = torch_pruning(
        network, EXAMPLE, 0.6, criterion="taylor-global", ignored=["fc"], labelled=labelled(), steps=20
    )
    assert 0.4 * peer.dense_macs < peer.macs <= 0.6 * peer.dense_macs
    assert all(value.grad is None for value in network.parameters())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -2.0])
def test_a_fraction_out_of_range(network: nn.Module, fraction: float) -> None:
    with pytest.raises(BudgetError, match=rf"must be in \(0, 1\), got {fraction}"):
        torch_pruning(network, EXAMPLE, fraction)


def test_what_cannot_be_reached_is_said(network: nn.Module) -> None:
    """One channel a layer remains, whatever the ratio."""
    with pytest.raises(BudgetError, match=r"does not reach 1\d\d? MACs at any ratio"):
        torch_pruning(network, EXAMPLE, 1e-5, ignored=["fc"])


def test_an_unknown_criterion(network: nn.Module) -> None:
    with pytest.raises(NotFoundError, match=r"no criterion 'l1-globul'. Did you mean 'l1-global'"):
        torch_pruning(network, EXAMPLE, 0.5, criterion="l1-globul")


def test_gradients_need_labels(network: nn.Module) -> None:
    with pytest.raises(NotFoundError, match="give `labelled` batches"):
        torch_pruning(network, EXAMPLE, 0.5, criterion="taylor-global", ignored=["fc"])


def test_macs_are_of_one_image() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 5))
    for n in (1, 7):
        assert macs(layers, torch.zeros(n, 3, 8, 8)) == 8 * 8 * 9 * 3 * 4 + 4 * 64 * 5


def test_batchnorm_gets_the_averages_of_the_batches() -> None:
    """Oracle: mean and unbiased variance of equal batches, averaged by NumPy's rules."""
    torch.manual_seed(2)
    norm = nn.Sequential(nn.BatchNorm1d(3)).eval()
    batches = list(torch.randn(4, 16, 3) * 2 + 1)
    reestimate_batchnorm(norm, batches)
    assert not norm[0].training
    assert norm[0].momentum == 0.1
    stacked = torch.stack(batches)
    torch.testing.assert_close(norm[0].running_mean, stacked.mean((0, 1)))
    torch.testing.assert_close(norm[0].running_var, stacked.var(1).mean(0))
