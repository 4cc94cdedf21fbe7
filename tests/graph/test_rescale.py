"""Factors that follow from a size: weights make up for them, or the size stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import apply, trace
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
