import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sned.surgery.masks import hold_masks
from sned.surgery.parametrisations import folded


class Noise(nn.Module):
    """Another weight each time, in evaluation mode too."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def test_a_network_without_is_itself() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert folded(model) is model


def test_a_network_has_plain_weights_and_the_users_goes_on_as_it_was() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 3)), parametrizations.orthogonal(nn.Linear(3, 3))
    )
    kinds, x = [type(layer) for layer in model], torch.randn(5, 4)
    plain = folded(model)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.Linear]
    assert sorted(plain.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    table = model[0].parametrizations.weight
    direction, length = table.original1, table.original0
    torch.testing.assert_close(plain[0].weight, length * direction / direction.norm(dim=1, keepdim=True))
    torch.testing.assert_close(plain(x), model(x))
    assert [type(layer) for layer in model] == kinds
    with torch.no_grad():
        length.mul_(2)  # the user's own is still parametrised
    assert not torch.allclose(plain[0](x), model[0](x))


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_weight_that_no_pass_has_brought_up_to_date_is_worked_out_anew() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].weight_g.mul_(3)
    plain, x = folded(model), torch.randn(5, 4)
    torch.testing.assert_close(plain(x), model(x))
    assert isinstance(plain[0].weight, nn.Parameter)


def test_noise_on_weights_is_no_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))
    parametrize.register_parametrization(model[0], "weight", Noise())
    plain = folded(model)
    assert parametrize.is_parametrized(plain[0])
    assert not parametrize.is_parametrized(plain[1])


def test_recurrent_layers_read_the_plain_weights_and_a_shared_layer_is_folded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = parametrizations.spectral_norm(nn.Linear(4, 4))
            self.same = self.layer
            self.recurrent = nn.GRU(4, 4, batch_first=True)
            prune_half(self.recurrent)

        def forward(self, x: Tensor) -> Tensor:
            return self.same(self.layer(self.recurrent(x)[0]))

    model, x = Twice().eval(), torch.randn(2, 3, 4)
    plain = folded(model)
    assert plain.same is plain.layer
    torch.testing.assert_close(plain(x), model(x))


def prune_half(layer: nn.Module) -> None:
    nn.utils.prune.l1_unstructured(layer, "weight_hh_l0", 0.5)


def test_masks_on_what_a_weight_is_made_of_hold() -> None:
    model, mask = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), torch.eye(4) > 0
    hold_masks(model, {"0.parametrizations.weight.original1": mask})
    assert torch.equal(folded(model)[0].weight != 0, mask)
