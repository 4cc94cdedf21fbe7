"""Whole layers and residual branches go, and what is left computes the rest of the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sned
from sned import Plan, apply, trace, without
from sned.errors import PlanError, SurgeryError
from tests.graph.oracle import call, distance, lively, python_paths, random_units, size

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """`relu(x + conv(relu(conv(x))))`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu(self.a(x))))


class Cnn(nn.Module):
    """Three residual blocks between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.ModuleList(Block() for _ in range(3))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = block(y)
        return self.fc(y.mean((2, 3)))


class Attention(nn.Module):
    """Returns a tuple, and takes its input by keyword, as some libraries have it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, *, scale: float, stream: Tensor) -> tuple[Tensor, None]:
        q, k, v = self.qkv(stream).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2) * scale).softmax(-1) @ v), None


class Encoder(nn.Module):
    """A pre-norm layer: both branches are added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(8), Attention()
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(scale=0.3, stream=self.norm1(x))[0]
        return x + self.gain * self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Two encoder layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(Encoder(), Encoder()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def test_a_block_left_out_passes_its_input_on() -> None:
    model = lively(Cnn())
    graph = trace(model, IMAGE)
    assert [layer.name for layer in graph.layers if not layer.adds] == ["blocks.0", "blocks.1", "blocks.2"]
    small = apply(model, without(graph, ["blocks.1"]).plan({}))
    expected = model.fc(model.blocks[2](model.blocks[0](model.stem(IMAGE))).mean((2, 3)))
    assert distance(call(small, IMAGE), expected) < 1e-6
    assert isinstance(small.blocks[1], nn.Identity)
    assert size(model) - size(small) == size(model.blocks[1])


def test_a_branch_left_out_adds_nothing() -> None:
    model = lively(Transformer())
    graph = trace(model, TOKENS)
    adding = {layer.name for layer in graph.layers if layer.adds}
    assert {"layers.0.attention", "layers.1.mlp"} <= adding
    small = apply(model, without(graph, ["layers.0.attention", "layers.1.mlp"]).plan({}))
    first, second = model.layers
    y = TOKENS + first.gain * first.mlp(first.norm2(TOKENS))
    y = y + second.attention(scale=0.3, stream=second.norm1(y))[0]
    assert distance(call(small, TOKENS), model.head(y)) < 1e-6


def test_units_go_from_what_the_layers_leave(tmp_path: Path) -> None:
    model = lively(Transformer())
    shorter = without(trace(model, TOKENS), ["layers.0.attention"])
    plan = Plan.from_json(shorter.plan(random_units(shorter, 0.5)).to_json())
    assert plan.bypassed == ("layers.0.attention",)
    assert "1 layers are left out" in str(plan)
    small = apply(model, plan)
    assert small.layers[1].attention.qkv.weight.shape[0] < 24
    sned.save(small, tmp_path / "small.safetensors")
    again = sned.load(Transformer().eval(), tmp_path / "small.safetensors")
    assert torch.equal(call(again, TOKENS), call(small, TOKENS))
    again.train()
    again(TOKENS).sum().backward()
    without_gradient = {name for name, p in again.named_parameters() if p.grad is None}
    assert without_gradient == {"layers.0.norm1.weight", "layers.0.norm1.bias"}


def test_a_plan_applies_to_other_weights_and_leaves_them_alone() -> None:
    plan = without(trace(lively(Cnn()), IMAGE), ["blocks.0"]).plan({})
    other = lively(Cnn(), seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    small = apply(other, plan)
    with torch.no_grad():
        small.stem.weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_what_lies_inside_another_goes_with_it() -> None:
    graph = trace(lively(Transformer()), TOKENS)
    assert without(graph, ["layers.0", "layers.0.mlp"]).bypassed == ("layers.0",)
    assert without(graph, []) is graph


class Twice(nn.Module):
    """One block that runs twice, and one whose weight is read by its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.read, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.again(x))
        return self.fc(self.read(y) * self.read.weight.sum())


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [("again", PlanError, r"runs once.*'again'"),
     ("fc", PlanError, r"returns the shape that it takes; not so 'fc'"),
     ("read", PlanError, r"not so 'read'")],
)  # fmt: skip
def test_what_cannot_be_left_out_is_refused(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        without(trace(lively(Twice()), TOKENS), [name])


def test_a_name_that_is_unknown_is_answered_with_close_ones() -> None:
    with pytest.raises(PlanError, match=r"'blocks\.4'\..*'blocks\.0'"):
        without(trace(lively(Cnn()), IMAGE), ["blocks.4"])


class Asks(nn.Module):
    """Reads an attribute of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fc = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x).to(self.layer.weight.dtype))


def test_a_layer_that_others_ask_for_is_refused() -> None:
    with pytest.raises(SurgeryError, match=r"nothing else asks for it.*AttributeError.*Leave that layer in"):
        without(trace(lively(Asks()), TOKENS), ["layer"])


class TwoNames(Cnn):
    """Each block has a name of its own beside its place in the list."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.stem, self.first, self.last = nn.Conv2d(3, 8, 1), Block(), Block()
        self.blocks, self.fc = nn.ModuleList([self.first, self.last]), nn.Linear(8, 5)


def test_a_layer_of_two_names_goes_from_both() -> None:
    model = lively(TwoNames())
    small = apply(model, without(trace(model, IMAGE), ["first"]).plan({}))
    assert small.first is small.blocks[0]
    expected = model.fc(model.last(model.stem(IMAGE)).mean((2, 3)))
    assert distance(call(small, IMAGE), expected) < 1e-6


@pytest.mark.parametrize("part", ["self_attn", "linear1"])
def test_a_layer_that_a_fast_path_looks_into_is_refused(part: str) -> None:
    model = lively(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True))
    graph = trace(model, TOKENS)
    assert part in {layer.name for layer in graph.layers}
    with pytest.raises(SurgeryError, match=r"nothing else asks for it.*AttributeError.*Leave that layer in"):
        without(graph, [part])
    with python_paths():
        assert without(graph, [part]).bypassed == (part,)


def test_a_wrong_stand_in_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import sned.surgery.depth as depth

    def wrong(_: Any) -> nn.Module:
        return depth.Bypass(0, zeros=True, returned=None)

    graph = trace(lively(Cnn()), IMAGE)
    monkeypatch.setattr(depth, "_stand_in", wrong)
    with pytest.raises(SurgeryError, match=r"leaving out blocks\.1 gives other outputs"):
        without(graph, ["blocks.1"])


class Counting(Cnn):
    """Counts its calls, and keeps a mean of what it saw, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.stem(x)
        self.seen.mul_(0.9).add_(0.1 * y.mean((0, 2, 3)))
        for block in self.blocks:
            y = block(y)
        return self.fc((y - self.seen[:, None, None]).mean((2, 3)))


def test_buffers_that_a_pass_writes_into_stay_as_they_are() -> None:
    model = lively(Counting())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shortened = without(trace(model, IMAGE), ["blocks.1"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    small = apply(model, shortened.plan({}))
    assert int(small.calls) == int(model.calls) == 0
