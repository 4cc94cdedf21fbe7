"""What elementwise ops make of zeros, held against PyTorch itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import trace
from sned.graph.ir import Op, Ref
from sned.graph.zero import KEEPING, Zero, zero
from tests.graph.oracle import distance, halved, lively, zeroed

ROW = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))

BESIDE: dict[str, tuple[Any, ...]] = {
    "addcdiv": (torch.zeros(3), torch.ones(3)), "addcmul": (torch.zeros(3), torch.ones(3)), "copy": (torch.zeros(3),),
    "lerp": (torch.zeros(3), 0.3), "maximum": (torch.zeros(3),), "minimum": (torch.zeros(3),),
    "native_dropout": (0.5, True), "prelu": (torch.ones(1),), "_prelu_kernel": (torch.ones(1),), "dropout": (0.5, True),
}  # fmt: skip
"""What some ops take beside the first tensor."""


@pytest.mark.parametrize("name", sorted(KEEPING - {"view_as_real_copy", "_conj"}))
def test_zeros_give_zeros(name: str) -> None:
    made = getattr(torch.ops.aten, name)(torch.zeros(3), *BESIDE.get(name, ()))
    first = made[0] if isinstance(made, tuple) else made
    assert torch.equal(first, torch.zeros(3))


def of(target: str, *args: Any, **kwargs: Any) -> Zero:
    """What is said of an op on such arguments."""
    return zero(Op(0, f"aten.{target}", args, kwargs, (1,), ""))


def test_numbers_decide() -> None:
    x, y = Ref(0), Ref(2)
    assert of("add.Tensor", x, y) is Zero.EVERY
    assert of("add_.Tensor", x, 1) is Zero.NEVER
    assert of("rsub.Scalar", x, 1) is Zero.NEVER
    assert of("pow.Tensor_Scalar", x, 2) is Zero.EVERY
    assert of("pow.Tensor_Scalar", x, -0.5) is Zero.NEVER
    assert of("pow.Scalar", 2, x) is Zero.NEVER
    assert of("clamp.default", x, 0.1) is Zero.NEVER
    assert of("clamp.default", x, None, 6) is Zero.EVERY
    assert of("hardtanh_.default", x) is Zero.EVERY
    assert of("masked_fill.Scalar", x, y, -100.0) is Zero.NEVER
    assert of("masked_fill.Scalar", x, y, 0) is Zero.EVERY
    assert of("mul.Tensor", x, y) is Zero.FACTOR
    assert of("div.Tensor", x, y) is Zero.DIVIDED
    assert of("sigmoid.default", x) is of("made_up.default", x) is Zero.NEVER


class Summed(nn.Module):
    """Hidden units are summed by something other than a weight; what else there is reads the sum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.c(SUMS[self.kind](a, b))


SUMS: dict[str, Any] = {
    "relu": lambda a, b: F.relu(a).sum(1, keepdim=True),
    "silu and square": lambda a, b: (F.silu(a) ** 2).sum(1, keepdim=True),
    "a gate": lambda a, b: (a * torch.sigmoid(b)).sum(1, keepdim=True),
    "a quotient": lambda a, b: (a / (1 + b.abs())).sum(1, keepdim=True),
    "a product of sums": lambda a, b: (torch.tanh(a + b) * torch.exp(b)).sum(1, keepdim=True),
    "split and put together": lambda a, b: torch.cat([F.gelu(a)[:, ::2], b[:, 1::2]], 1).sum(1, keepdim=True),
    "queries and keys": lambda a, b: torch.einsum("ni,ni->n", a, F.elu(b) + 1)[:, None],
    "sigmoid": lambda a, b: torch.sigmoid(a).sum(1, keepdim=True),
    "softplus in a view": lambda a, b: F.softplus(a).view(-1, 2, 4).sum((1, 2)).unsqueeze(1),
    "exponential": lambda a, b: torch.exp(a).sum(1, keepdim=True),
    "one more": lambda a, b: (a + 1).sum(1, keepdim=True),
    "how many": lambda a, b: (a <= 0).float().sum(1, keepdim=True),
    "both lifted": lambda a, b: torch.einsum("ni,ni->n", F.elu(a) + 1, F.elu(b) + 1)[:, None],
}


@pytest.mark.parametrize("kind", SUMS)
def test_removal_is_exact_where_it_says_so_and_not_elsewhere(kind: str) -> None:
    """Each is tried: with half of the units gone, against the dense network with them set to zero."""
    model = lively(Summed(kind))
    small, graph, plan = halved(model, ROW)
    assert graph.groups
    with torch.no_grad():
        off = distance(small(ROW), zeroed(model, graph, plan.removed, ROW))
    assert all(group.exact for group in graph.groups) == (off < 1e-4)


def test_a_weight_behind_it_makes_it_exact_again() -> None:
    model = lively(nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3)))
    assert all(group.exact for group in trace(model, ROW).groups)
