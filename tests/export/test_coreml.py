"""The reader of Core ML programs, op by op against PyTorch, and what older systems do not take."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sned
from sned.errors import UserError

pytest.importorskip("coremltools")

FUNCTIONS: dict[str, Any] = {
    "strided": lambda x: functional.max_pool2d(x[:, 1:, ::2, -5:], 2),
    "padded": lambda x: functional.pad(x, (1, 2, 0, 1), mode="replicate"),
    "ceil pools": lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False),
    "upsampled": lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "transposed": lambda x: functional.conv_transpose2d(
        x, torch.linspace(-1, 1, 4 * 3 * 9).reshape(4, 3, 3, 3), stride=2
    ),
    "reduced": lambda x: x.amax(1, keepdim=True) - x.amin((2, 3), keepdim=True) + x.sum(1, keepdim=True),
    "stacked": lambda x: torch.stack([x, x.abs().sqrt(), x.exp().log()], 1).flatten(1, 2),
    "chosen": lambda x: torch.where(x > 0.2, x, torch.minimum(x * 2, torch.full_like(x, -0.1))),
    "gated": lambda x: (
        functional.silu(x) + functional.gelu(x) + functional.elu(x) + functional.softplus(x) + x.tanh()
    ),
    "normalised": lambda x: (
        functional.layer_norm(x, (8, 8)) + functional.instance_norm(x) + functional.group_norm(x, 2)
    ),
    "shuffled": lambda x: functional.pixel_shuffle(x, 2) if x.shape[1] % 4 == 0 else x,
    "split": lambda x: torch.cat([part * (place + 1) for place, part in enumerate(x.chunk(2, 1))], 1).roll(
        1, 2
    ),
    "taking turns": lambda x: (
        torch.cat([x, -x], 1).reshape(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
    ),
    "masked": lambda x: torch.where(x.new_ones(x.shape).bool() & (x > 0), x, 0.5) * (x > 1).any(1, True),
    "promoted": lambda x: torch.where(x > 0, (x * 3).int(), 0.5),
    "of another type": lambda x: (
        torch.zeros_like(x > 0, dtype=x.dtype).masked_fill(x > 0, -5)
        + torch.full_like(x > 0, 0.5, dtype=x.dtype)
    ),
    "picked": lambda x: x[torch.arange(x.shape[0])[:, None], torch.tensor([[2, 0]])],
    "rounded": lambda x: functional.threshold(x, 0.1, 0.0).round() + (x / 4).tan() + x.atan(),
    "largest": lambda x: x.topk(3, 1).values * x.topk(3, 1).indices + x.topk(3, 1, largest=False).values,
    "in order": lambda x: x.sort(2, descending=True).values - x.sort(2).values,
    "of one length": lambda x: functional.normalize(x, dim=1) + x.logsumexp((2, 3), keepdim=True),
    "in classes": lambda x: functional.one_hot(x.argmin(1), 4).float() + (x > 0).logical_xor(x > 1).any(),
    "in a band": lambda x: x.tril(1) + x.triu(-2),
    "powers": lambda x: x**2 / (x.abs() + 1).rsqrt() + x.cumsum(1).erf(),
}


class Of(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.name](x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_mean_what_they_mean_in_pytorch(tmp_path: Path, name: str) -> None:
    x = torch.randn(1, 4, 8, 8)
    exported = sned.export(Of(name), x, to="coreml", out=tmp_path / "m.mlpackage", runs=0)
    torch.testing.assert_close(exported.module()(x), FUNCTIONS[name](x), atol=1e-4, rtol=1e-4)


RECURRENT: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(6, 8, batch_first=True),
    "deep lstm of two directions": lambda: nn.LSTM(6, 8, 2, bidirectional=True),
    "lstm that projects its state": lambda: nn.LSTM(6, 8, batch_first=True, proj_size=3),
    "gru without biases": lambda: nn.GRU(6, 8, bias=False),
    "deep gru of two directions": lambda: nn.GRU(6, 8, 2, bidirectional=True, batch_first=True),
    "plain layer of two directions": lambda: nn.RNN(6, 8, bidirectional=True, nonlinearity="relu"),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_give_their_steps_and_their_states(tmp_path: Path, name: str) -> None:
    model, x = RECURRENT[name]().eval(), torch.randn(2, 3, 6)
    exported = sned.export(model, x, to="coreml", out=tmp_path / "m.mlpackage", runs=0)
    own = pytree.tree_leaves(model(x))
    torch.testing.assert_close(pytree.tree_leaves(exported.module()(x)), own, atol=1e-5, rtol=1e-5)


class Stepping(nn.Module):
    """Cells that the network steps through by itself, from states that enter."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.gated = nn.LSTMCell(4, 4), nn.GRUCell(4, 4)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        for step in x.unbind(1):
            hidden, cell = self.long(step, (hidden, cell))
            cell = self.gated(hidden, cell)
        return hidden, cell


def test_cells_are_stepped_through(tmp_path: Path) -> None:
    model, x = Stepping().eval(), (torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 4))
    exported = sned.export(model, x, to="coreml", out=tmp_path / "m.mlpackage", runs=0)
    torch.testing.assert_close(exported.module()(*x), model(*x), atol=1e-5, rtol=1e-5)


def test_a_system_too_old_for_a_form_is_told(tmp_path: Path) -> None:
    model, x = nn.Linear(64, 64), torch.randn(1, 64)
    model.weight.data[0] = 0
    path = tmp_path / "m.mlpackage"
    with pytest.raises(
        UserError, match=r"int8 weights from iOS16 on.*to run on iOS15.*raise `system` to iOS16"
    ):
        sned.export(model, x, to="coreml", quantize="int8", system="iOS15", out=path)
    with pytest.raises(UserError, match=r"both sparse and int8 from iOS18 on"):
        sned.export(model, x, to="coreml", quantize="int8", sparse=True, system="iOS17", out=path)
    with pytest.raises(UserError, match=r"one of iOS15, iOS16, iOS17, iOS18.*got 'iOS9'"):
        sned.export(model, x, to="coreml", system="iOS9", out=path)
    assert list(tmp_path.iterdir()) == []
    assert "For iOS15 and later." in sned.export(model, x, to="coreml", system="iOS15", out=path).notes


def test_a_value_beyond_16_bits_shows(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, 6e4)
    with pytest.raises(sned.SnedError, match=r"The fp16 file does not compute.*Values beyond 65,504"):
        sned.export(model, torch.ones(1, 4), to="coreml", quantize="fp16", out=tmp_path / "m.mlpackage")


class Named(nn.Module):
    """Arguments that are called as operations are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(4, 4), nn.Embedding(3000, 4)

    def forward(self, add: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.layer(add) + self.table(ids)).relu() * mask[:, None]


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_what_enters_a_package_is_called_as_in_the_model(tmp_path: Path, precision: str | None) -> None:
    from coremltools.proto import FeatureTypes_pb2, Model_pb2

    kinds = FeatureTypes_pb2.ArrayFeatureType
    x = torch.randn(2, 4), torch.tensor([2047, 2999]), torch.tensor([True, False])
    made = sned.export(
        Named().eval(), x, to="coreml", quantize=precision, out=tmp_path / "m.mlpackage", runs=0
    )
    spec = Model_pb2.Model()
    spec.ParseFromString((tmp_path / "m.mlpackage/Data/com.apple.CoreML/model.mlmodel").read_bytes())
    (function,) = spec.description.functions or [spec.description]
    told = {each.name: each.type.multiArrayType.dataType for each in function.input}
    assert told == {"add": kinds.FLOAT32, "ids": kinds.INT32, "mask": kinds.FLOAT32}
    assert (*told,) == made.inputs
