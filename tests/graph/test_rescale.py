"""Factors that follow from a size: weights make up for them, or the size stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.oracle import call, distance, halved, lively, zeroed

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
