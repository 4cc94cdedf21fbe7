"""Numbers in the user's modules follow a plan, wherever they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
from tests.graph.networks import NETWORKS
from tests.graph.oracle import call, distance, halved, lively, right, zeroed

SEQUENCE = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class View(nn.Module):
    """A view by two attributes; gates keep heads and dimensions apart."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 6
        self.a, self.b = nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(x.shape[0], x.shape[1], self.heads, self.dim)
        y = y * torch.sigmoid(y.sum(2, keepdim=True))
        return self.b(y.reshape(x.shape[0], x.shape[1], self.heads * self.dim))


def test_numbers_of_a_view() -> None:
    small = right(View(), SEQUENCE)
    assert small.a.weight.shape[0] == small.heads * small.dim
    assert (small.heads, small.dim) == (2, 3)


class TupleView(View):
    """The same numbers in a tuple, and a list for the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.flat = (4, 6), [24]

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(*x.shape[:2], *self.shape)
        y = y * torch.sigmoid(y.sum(2, keepdim=True))
        return self.b(y.reshape(*x.shape[:2], *self.flat))


def test_numbers_in_tuples_and_lists() -> None:
    small = right(TupleView(), SEQUENCE)
    assert small.shape == (2, 3)
    assert small.flat == [6]


@dataclass
class Config:
    """Settings that several layers share."""

    heads: int = 4
    dim: int = 6


class Configured(View):
    """Reads its numbers from an object."""

    def __init__(self, config: Config | SimpleNamespace) -> None:
        super().__init__()
        del self.heads, self.dim
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(x.shape[0], x.shape[1], self.config.heads, self.config.dim)
        y = y * torch.sigmoid(y.sum(2, keepdim=True))
        return self.b(y.reshape(x.shape[0], x.shape[1], self.config.heads * self.config.dim))


@pytest.mark.parametrize("config", [Config(), SimpleNamespace(heads=4, dim=6)])
def test_numbers_of_a_configuration(config: Config | SimpleNamespace) -> None:
    small = right(Configured(config), SEQUENCE)
    assert (small.config.heads, small.config.dim) == (2, 3)
    assert (config.heads, config.dim) == (4, 6)


def test_a_shared_configuration_is_copied_for_the_layer_that_changes() -> None:
    config = Config()
    model = nn.Sequential(Configured(config), nn.Linear(3, 5), Configured(config))
    lively(model)
    graph = trace(model, SEQUENCE)
    dims = next(g for g in graph.groups if g.name.startswith("2.a") and g.size == 4)
    removed = {dims.name: [1]}
    small = apply(model, graph.plan(removed))
    assert distance(call(small, SEQUENCE), zeroed(model, graph, removed, SEQUENCE)) < 1e-4
    assert (small[0].config.heads, small[2].config.heads, config.heads) == (4, 3, 4)


class DictConfigured(View):
    """Reads its numbers from a dict."""

    def __init__(self) -> None:
        super().__init__()
        del self.heads, self.dim
        self.config = {"heads": 4, "dim": 6}

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(x.shape[0], x.shape[1], self.config["heads"], self.config["dim"])
        y = y * torch.sigmoid(y.sum(2, keepdim=True))
        return self.b(y.reshape(x.shape[0], x.shape[1], self.config["heads"] * self.config["dim"]))


def test_numbers_in_a_dict() -> None:
    small = right(DictConfigured(), SEQUENCE)
    assert small.config == {"heads": 2, "dim": 3}


class ListConfigured(View):
    """Reads its numbers from lists inside of an object, or of a dict."""

    def __init__(self, config: SimpleNamespace | dict[str, object]) -> None:
        super().__init__()
        del self.heads, self.dim
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        held = self.config if isinstance(self.config, dict) else vars(self.config)
        y = self.a(x).view(x.shape[0], x.shape[1], held["heads"][-1], held["dims"][0])
        y = y * torch.sigmoid(y.sum(2, keepdim=True))
        return self.b(y.reshape(x.shape[0], -1, held["heads"][-1] * held["dims"][0]))


@pytest.mark.parametrize("kind", [dict, SimpleNamespace])
def test_numbers_in_lists_of_a_configuration(kind: type) -> None:
    config = kind(heads=[7, 4], dims=(6, 9))
    small = right(ListConfigured(config), SEQUENCE)
    assert small.config == kind(heads=[7, 2], dims=(3, 9))
    assert config == kind(heads=[7, 4], dims=(6, 9))


class Derived(View):
    """Keeps the product and the number of heads, and divides."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 24
        del self.dim

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(x.shape[0], x.shape[1], self.heads, self.width // self.heads)
        y = y * torch.sigmoid(y.sum(2, keepdim=True))
        return self.b(y.reshape(x.shape[0], x.shape[1], self.width))


def test_numbers_that_are_worked_out() -> None:
    small = right(Derived(), SEQUENCE)
    assert (small.heads, small.width) == (2, 6)


class Asserts(nn.Module):
    """Checks its input's width against an attribute, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b = 8, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        assert x.shape[-1] == self.width, "the width is wrong"
        return self.b(x)


def test_numbers_that_are_only_compared() -> None:
    assert right(Asserts(), SEQUENCE).width == 4


class SplitBy(nn.Module):
    """A split by one number, or by a list of them; a slice up to a number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.part, self.parts = kind, 8, [8, 8]
        self.a, self.b = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.kind == "slice":
            one, two = y[..., : self.part], y[..., self.part :]
        elif self.kind == "narrow":
            one, two = y.narrow(-1, 0, self.part), y.narrow(-1, self.part, self.part)
        else:
            one, two = y.split(self.part if self.kind == "number" else self.parts, -1)
        return self.b(torch.sigmoid(one) * two)


@pytest.mark.parametrize("kind", ["number", "list", "slice", "narrow"])
def test_numbers_of_a_split(kind: str) -> None:
    small = right(SplitBy(kind), SEQUENCE)
    assert small.a.weight.shape == (8, 5)
    assert small.b.weight.shape == (3, 4)


def test_groups_of_a_convolution_that_loses_whole_groups_and_channels_in_each() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    small = right(model, torch.randn(2, 3, 6, 6))
    assert small[2].groups == 2
    assert small[2].weight.shape == (4, 2, 3, 3)
    assert (small[2].in_channels, small[2].out_channels) == (4, 4)


def test_a_number_that_also_occurs_elsewhere_in_the_call() -> None:
    """Stride, padding and groups are all 2; only the groups change."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2, padding=2, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    small = right(model, torch.randn(2, 3, 8, 8))
    assert small[1].groups == 1
    assert small[1].stride == (2, 2)


def test_layers_with_shapes_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 3))
    graph = trace(model, SEQUENCE)
    small = apply(model, graph.plan({"0": list(range(6))}))
    assert small[1].normalized_shape == (10,)
    groups = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 1))
    graph = trace(groups, torch.randn(2, 3, 4, 4))
    whole = next(g for g in graph.groups if g.size == 4 and g.cell_count == 1)
    small = apply(groups, graph.plan({whole.name: [0, 3]}))
    assert small[1].num_groups * 4 == small[1].num_channels == small[0].out_channels


def test_a_recurrent_layer_knows_its_new_size() -> None:
    model, inputs = NETWORKS["lstm_layers_bidirectional"]()
    small, *_ = halved(lively(model), *inputs)
    assert (small.cells.hidden_size, small.cells.input_size) == (4, 3)
    assert small.cells(torch.randn(2, 7, 3))[0].shape == (2, 7, 8)


def test_as_many_groups_of_a_norm_as_samples() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(2, 12), nn.ReLU(), nn.Conv2d(12, 3, 1)))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    whole = next(group for group in graph.groups if group.size == 2)
    small = apply(model, graph.plan({whole.name: [0]}))
    assert small[1].num_groups == 1


class SplitByAttributes(nn.Module):
    """Pieces whose sizes are attributes, one of which is also the width of another layer's piece."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.part, self.width = 4, 6, 10
        self.embed, self.qkv, self.out = nn.Linear(5, 10), nn.Linear(6, 14), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        mine, rest = torch.split(self.embed(x), [self.part, self.width - self.part], dim=-1)
        q, k, v = torch.split(self.qkv(mine), [self.key, self.key, self.part], dim=-1)
        mine = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.out(torch.cat([mine.reshape(*mine.shape[:2], self.part), rest], -1).relu())


def test_pieces_of_a_split_follow_their_attributes() -> None:
    small = right(SplitByAttributes(), SEQUENCE)
    assert (small.key, small.part, small.width) == (2, 3, 5)


class Picked(nn.Module):
    """A list as an index: the order of features that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [2, 0, 4, 1, 3]
        self.a, self.c = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x[..., self.order]).relu())


def test_lists_keep_their_values_as_an_index() -> None:
    assert right(Picked(), SEQUENCE).a.weight.shape == (4, 5)


class AsksShapes(nn.Module):
    """Compares a table's size with an attribute before it reads it; asks for the shape of one that it never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.c = nn.Linear(5, 8), nn.Linear(8, 3)
        self.gain, self.idle = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        assert self.gain.numel() == self.width
        assert self.idle.shape[0] == 6
        return self.c((self.a(x) * self.gain).relu())


def test_shapes_asked_for_before_a_parameter_is_read() -> None:
    small = right(AsksShapes(), SEQUENCE)
    assert (small.width, small.gain.numel(), small.idle.numel()) == (4, 4, 6)


class Interleaved(nn.Module):
    """Even and odd positions of one layer: values and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 24), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y[..., ::2] * torch.sigmoid(y[..., 1::2]))


@pytest.mark.parametrize("gone", [[0], [11], [0, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
def test_strides_keep_their_phase_whatever_goes(gone: list[int]) -> None:
    model = lively(Interleaved())
    graph = trace(model, SEQUENCE)
    small = apply(model, graph.plan({graph.groups[0].name: gone}))
    expected = zeroed(model, graph, {graph.groups[0].name: gone}, SEQUENCE)
    assert distance(call(small, SEQUENCE), expected) < 1e-5


class Talking(nn.Module):
    """A layer over an axis that is moved to the end: where it keeps one position, PyTorch adds the bias elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.heads = nn.Linear(6, 4), nn.Linear(4, 4)
        self.over, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(self.before(x)).transpose(1, 2)
        scores = (heads.unsqueeze(-1) * heads.unsqueeze(-2)).contiguous()
        return self.head(self.over(scores.permute(0, 2, 3, 1)).sum(2))


def test_a_bias_that_is_added_behind_its_product_is_none_of_the_code_s() -> None:
    graph = trace(Talking(), torch.randn(2, 5, 6))
    assert [(group.name, group.size) for group in graph.groups] == [("before", 4), ("heads", 4), ("over", 4)]
