"""Factors that follow from a size: weights make up for them, or the size stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
from tests.graph.networks import NETWORKS
from tests.graph.oracle import call, distance, halved, lively, random_units, zeroed

SEQUENCE = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class Equalised(nn.Linear):
    """Works its weight out in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.7, self.bias)


class Attention(nn.Module):
    """Divides by the root of the size of its heads; its query has a weight that is worked out."""

    def __init__(self, *, bias: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = 4, fused
        self.before, self.stream = nn.Linear(5, 12), nn.Linear(5, 12)
        self.q, self.kv = Equalised(12, 48 if fused else 16, bias=bias), nn.Linear(12, 32)
        self.out, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        entering, stream = self.q(self.before(x)), self.stream(x)
        q, k, v = entering.chunk(3, -1) if self.fused else (entering, *self.kv(stream).chunk(2, -1))
        y = F.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v))
        return self.head(stream + self.out(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_weight_that_is_worked_out_scales_with_its_bias(bias: bool, fused: bool) -> None:
    model = lively(Attention(bias=bias, fused=fused))
    small, graph, plan = halved(model, SEQUENCE)
    assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5
    assert fused or small.q.weight.shape[0] < 16


class Queries(nn.Module):
    """Learned queries, whose rows have labels too, look at each other; their rows may be read apart from the rest."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.queries, self.before = nn.Parameter(torch.rand(7, 12)), nn.Linear(5, 3)
        self.qkv, self.head, self.apart = nn.Linear(12, 48), nn.Linear(16, 3), apart

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 4, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv(self.queries.expand(x.shape[0], -1, -1)).unflatten(-1, (3, -1))
        q, k, v = made[:, :, 0], made[:, :, 1], made[:, :, 2]
        beside = q[:, 4:].tanh() if self.apart else v[:, 4:]
        q = q[:, :4] if self.apart else q
        y = F.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v))
        return self.head(torch.cat([y.transpose(1, 2).flatten(2), beside], 1)).mean(1) + self.before(x).mean(
            1
        )


@pytest.mark.parametrize("apart", [False, True])
def test_heads_of_learned_queries_lose_dimensions_where_only_the_factor_reads_them(apart: bool) -> None:
    model = lively(Queries(apart=apart))
    graph = trace(model, SEQUENCE)
    exact = [group.name for group in graph.groups if group.slices[0].axis == 1 or group.name == "qkv"]
    plan = graph.plan(random_units(graph, only=exact))  # but for rows of queries, over which a mean goes
    small = apply(model, plan)
    assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5
    assert (small.qkv.weight.shape[0] < 48) is not apart


class Shared(nn.Module):
    """One layer called several times, as ALBERT does; it may multiply by its factor twice."""

    def __init__(self, *, calls: int, twice: bool = False, beside: bool = False) -> None:
        super().__init__()
        self.before, self.q, self.kv = nn.Linear(5, 12), nn.Linear(12, 16), nn.Linear(12, 32)
        self.out, self.head = nn.Linear(16, 12), nn.Linear(12, 3)
        self.heads, self.calls, self.twice, self.beside = 4, calls, twice, beside

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for _ in range(self.calls):
            q, k, v = map(self.split, (self.q(x), *self.kv(x).chunk(2, -1)))
            q = q * q.shape[-1] ** -0.5
            q = q * q.shape[-1] ** -0.5 if self.twice else q
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            x = x + self.out(y.transpose(1, 2).flatten(2))
        beside = self.q(x).tanh().sum(-1, keepdim=True) if self.beside else 0
        return self.head(x) + beside


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_layer_that_is_called_again_makes_up_for_its_factor_once(calls: int, twice: bool) -> None:
    model = lively(Shared(calls=calls, twice=twice))
    small, graph, plan = halved(model, SEQUENCE)
    assert small.q.weight.shape[0] == 4, "half of the heads, and of the dimensions inside them"
    assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5


def test_a_size_that_stays_for_its_factor_names_the_op_that_multiplies_by_it() -> None:
    """A further call reads what the weights make, and does not multiply it."""
    graph = trace(nn.Sequential(lively(Shared(calls=2, beside=True))), SEQUENCE)
    held = {(frozen.op, frozen.module) for frozen in graph.frozen if "derives a factor" in frozen.reason}
    assert held == {("mul", "0")}


class Stacked(nn.Module):
    """Heads side by side on the batch axis, as set transformers have them; the query is added to what it found."""

    def __init__(self, *, added: bool) -> None:
        super().__init__()
        self.heads, self.width, self.added = 4, 16, added
        self.q, self.k, self.v = (nn.Linear(5, 16) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = self.width // self.heads
        q, k, v = (torch.cat(layer(x).split(size, 2), 0) for layer in (self.q, self.k, self.v))
        y = torch.softmax(q.bmm(k.transpose(1, 2)) / math.sqrt(self.width), 2).bmm(v)
        return self.head(torch.cat((q + y if self.added else y).split(x.shape[0], 0), 2))


@pytest.mark.parametrize("added", [False, True])
def test_a_factor_by_attributes_is_made_up_for_by_what_serves_nothing_else(added: bool) -> None:
    model = lively(Stacked(added=added))
    small, graph, plan = halved(model, SEQUENCE)
    assert {site.parameter for (rescale,) in [graph.rescales] for site in rescale.sites} == (
        {"k.weight", "k.bias"} if added else {"q.weight", "q.bias"}
    )
    assert small.q.weight.shape == small.v.weight.shape == (8, 5)
    assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5


class StackedTwice(Stacked):
    """Attends once more by the same factor, where nothing but the sum itself could make up for it."""

    def forward(self, x: Tensor) -> Tensor:
        size, found = self.width // self.heads, []
        q, k, v = (torch.cat(layer(x).split(size, 2), 0) for layer in (self.q, self.k, self.v))
        for _ in range(2):
            q = q + torch.softmax(q.bmm(k.transpose(1, 2)) / math.sqrt(self.width), 2).bmm(v)
            k = v = q
            found.append(torch.cat(q.split(x.shape[0], 0), 2))
        return self.head(found[-1])


def test_a_factor_by_attributes_that_nothing_makes_up_for_keeps_their_sizes() -> None:
    model = lively(StackedTwice(added=True))
    graph = trace(model, SEQUENCE)
    apply(model, graph.plan(random_units(graph)))
    held = {frozen.reason for frozen in graph.frozen if frozen.name in "qkv"}
    assert held == {"the code derives a factor from this size"}


class Adapted(nn.Module):
    """A query of two summands, the second of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down, self.up = (
            nn.Linear(5, 16),
            nn.Linear(5, 2, bias=False),
            nn.Linear(2, 16, bias=False),
        )
        self.k, self.v, self.head = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.q(x) + self.up(self.down(x)) * 2.0, self.k(x), self.v(x)
        q, k, v = (each.view(x.shape[0], x.shape[1], 4, -1).transpose(1, 2) for each in found)
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_all_summands_make_up_for_the_factor_of_their_sum() -> None:
    model = lively(Adapted())
    small, graph, plan = halved(model, SEQUENCE)
    assert small.up.weight.shape[0] == small.q.weight.shape[0] == 8
    assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5


class Halved(nn.Module):
    """A number worked out by a function of PyTorch's from a size alone, before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = int(torch.div(x.shape[1], 2, rounding_mode="floor"))
        return self.b(self.a(x[:, :steps]).relu())


def test_a_quotient_of_numbers_is_no_factor() -> None:
    model = lively(Halved())
    small, graph, plan = halved(model, SEQUENCE)
    assert small.a.weight.shape == (4, 5)
    assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5


def test_a_part_of_a_bias_makes_up_for_the_factor_beside_its_weight() -> None:
    model, inputs = NETWORKS["attention_of_learned_queries"]()
    graph = trace(model, *inputs)
    assert [(group.name, group.size) for group in graph.groups] == [
        ("embed", 6), ("attention", 8), ("attention.out_proj", 8),
    ]  # fmt: skip


class Written(nn.Module):
    """Makes a tensor of its factor first, and reads that as a factor alone, or for something else too."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone, self.q, self.k, self.out = alone, nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = self.q(x)
        factor = torch.tensor(query.shape[-1] ** -0.5).to(x.dtype)
        query = query * (factor if self.alone else torch.exp(factor))
        return self.out(query @ self.k(x).transpose(1, 2))


@pytest.mark.parametrize("alone", [True, False])
def test_a_factor_may_be_made_a_tensor_first(alone: bool) -> None:
    model = lively(Written(alone=alone))
    graph = trace(model, SEQUENCE)
    assert [group.size for group in graph.groups] == ([16] if alone else [])
    assert alone or {frozen.reason for frozen in graph.frozen} >= {
        "the code makes a tensor that holds this size"
    }
    if alone:
        small, graph, plan = halved(model, SEQUENCE)
        assert small.q.weight.shape == (8, 5)
        assert distance(call(small, SEQUENCE), zeroed(model, graph, plan.removed, SEQUENCE)) < 1e-5
