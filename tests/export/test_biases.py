import copy

import pytest
import torch
from torch import nn

from sned.export.biases import compensated, rounded


def naive(weight: torch.Tensor) -> torch.Tensor:
    """Row by row, entry by entry."""
    made = torch.empty_like(weight)
    for row in range(len(weight)):
        scale = float(weight[row].abs().max()) / 127
        flat = [round(value / scale) * scale for value in weight[row].flatten().tolist()]
        made[row] = torch.tensor(flat).reshape(weight[row].shape)
    return made


def test_rounding_is_to_a_127th_of_the_largest_of_each_row() -> None:
    weight = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(rounded(weight), naive(weight))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), torch.randn(64, 6) + 2),
        (nn.Linear(6, 4, bias=False), torch.randn(16, 5, 6) + 2),
        (nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.randn(8, 3, 5, 5) + 2),
        (nn.Conv2d(4, 4, 3, stride=2, groups=4), torch.randn(8, 4, 7, 7) + 2),
        (nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), torch.randn(8, 3, 9) + 2),
    ],
    ids=["linear", "sequence", "conv", "depthwise", "circular"],
)
def test_the_mean_of_each_channel_is_what_it_was_once_weights_are_rounded(
    layer: nn.Module, x: torch.Tensor
) -> None:
    made = compensated(nn.Sequential(layer), list(x.split(8)))[0]
    coarse = copy.deepcopy(made)
    coarse.weight.data = naive(made.weight.data)
    uncorrected = copy.deepcopy(layer)
    uncorrected.weight.data = naive(layer.weight.data)
    with torch.no_grad():
        expected, got, shifted = layer(x), coarse(x), uncorrected(x)
    channel = -1 if isinstance(layer, nn.Linear) else 1
    axes = [axis for axis in range(expected.ndim) if axis != channel % expected.ndim]
    torch.testing.assert_close(got.mean(axes), expected.mean(axes), atol=1e-5, rtol=0)
    assert float((shifted.mean(axes) - expected.mean(axes)).abs().max()) > 1e-4
    assert torch.equal(made.weight, layer.weight)


def test_the_network_is_not_touched_and_what_is_never_called_stays() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Half().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = compensated(model, [torch.randn(5, 3) + 1])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(made.unused.bias, model.unused.bias)
    assert not torch.equal(made.used.bias, model.used.bias)


def test_a_layer_may_be_called_by_keyword() -> None:
    class ByName(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(input=x)

    layer, x = nn.Linear(3, 3), torch.randn(5, 3) + 1
    made = compensated(ByName(layer), [x])
    torch.testing.assert_close(made.layer.bias, compensated(nn.Sequential(layer), [x])[0].bias)
    assert not torch.equal(made.layer.bias, layer.bias)


class Standardised(nn.Conv2d):
    """Makes other weights of its own before it convolves with them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, self.weight - mean, self.bias)


class Padded(nn.Conv2d):
    """Pads in its own way, and convolves with its weights as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (0, 1, 0, 1), value=5)
        return nn.functional.conv2d(padded, bias=self.bias, weight=self.weight, stride=2)


def test_weights_that_a_layer_works_out_are_not_those_that_are_rounded() -> None:
    layer = Standardised(3, 4, 3)
    made = compensated(nn.Sequential(layer), [torch.randn(8, 3, 5, 5) + 2])
    assert torch.equal(made[0].bias, layer.bias)


def test_layers_with_a_forward_of_their_own_answer_for_what_their_weights_meet() -> None:
    layer, x = Padded(3, 4, 3), torch.randn(8, 3, 5, 5) + 2
    made = compensated(nn.Sequential(layer), [x])
    coarse = copy.deepcopy(made)
    coarse[0].weight.data = naive(layer.weight.data)
    with torch.no_grad():
        torch.testing.assert_close(coarse(x).mean((0, 2, 3)), layer(x).mean((0, 2, 3)), atol=1e-5, rtol=0)
