"""Small networks of other kinds: norms, gates, recurrent layers, tied and raw weights, answers of any type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.registry import network


@network
def group_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 4, 1))
    return net, (torch.randn(2, 3, 6, 6),)


@network
def layer_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    return net, (torch.randn(2, 7, 5),)


@network
def batch_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    return net, (torch.randn(2, 3, 6, 6),)


@network
def instance_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def instance_norm_tracked() -> tuple[nn.Module, tuple[Any, ...]]:
    norm = nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 4, 1)), (
        torch.randn(2, 3, 6, 6),
    )


@network
def rms_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Linear(5, 16), nn.RMSNorm(16), nn.SiLU(), nn.Linear(16, 3))
    return net, (torch.randn(2, 7, 5),)


class LlamaNorm(nn.Module):
    """RMSNorm as Llama writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


@network
def rms_norm_by_hand() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.Linear(5, 16), LlamaNorm(16), nn.Linear(16, 3)), (torch.randn(2, 7, 5),)


@network
def glu() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.Linear(5, 16), nn.GLU(), nn.Linear(8, 3)), (torch.randn(2, 6, 5),)


@network
def glu_conv() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.Conv1d(5, 16, 3), nn.GLU(1), nn.Conv1d(8, 3, 1)), (torch.randn(2, 5, 6),)


class SwiGlu(nn.Module):
    """Two projections, or one that is cut in two."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.gate, self.down = nn.Linear(5, 16 if fused else 8), nn.Linear(8, 3)
        self.up = nn.Identity() if fused else nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            a, b = self.gate(x).chunk(2, -1)
        else:
            a, b = self.gate(x), self.up(x)
        return self.down(F.silu(a) * b)


@network
def swiglu() -> tuple[nn.Module, tuple[Any, ...]]:
    return SwiGlu(fused=False), (torch.randn(2, 6, 5),)


@network
def swiglu_fused() -> tuple[nn.Module, tuple[Any, ...]]:
    return SwiGlu(fused=True), (torch.randn(2, 6, 5),)


class Recurrent(nn.Module):
    """Embedding, a recurrent layer, a tagger."""

    def __init__(
        self, kind: type[nn.RNNBase], *, layers: int = 1, both: bool = False, first: bool = True
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.cells = kind(6, 8, num_layers=layers, bidirectional=both, batch_first=first)
        self.head = nn.Linear(16 if both else 8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(ids))[0])


def tokens() -> Tensor:
    """Token ids."""
    return torch.arange(10).reshape(2, 5) * 7 % 20


@network
def lstm() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM), (tokens(),)


@network
def lstm_bidirectional() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM, both=True), (tokens(),)


@network
def lstm_layers() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM, layers=2), (tokens(),)


@network
def lstm_layers_bidirectional() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM, layers=2, both=True), (tokens(),)


@network
def gru() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.GRU), (tokens(),)


@network
def gru_layers_bidirectional() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.GRU, layers=2, both=True), (tokens(),)


class Cell(nn.Module):
    """An LSTM cell stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in range(3):
            h, c = self.cell(x[:, step], (h, c))
        return self.head(h)


@network
def lstm_cell() -> tuple[nn.Module, tuple[Any, ...]]:
    return Cell(), (torch.randn(2, 3, 5),)


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + torch.tanh(self.mid(x)))


@network
def tied_weights() -> tuple[nn.Module, tuple[Any, ...]]:
    return Tied(), (tokens(),)


class Raw(nn.Module):
    """No layers at all: weights, a class token, positions, a scale, an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, 8))
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 7, 8))
        self.gamma = nn.Parameter(torch.ones(8))
        self.mix = nn.Parameter(torch.zeros(8, 6))
        self.head = nn.Parameter(torch.zeros(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.w
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = torch.einsum("bnc,cd->bnd", x * self.gamma, self.mix)
        return F.linear(torch.relu(x[:, 0]), self.head)


@network
def raw_parameters() -> tuple[nn.Module, tuple[Any, ...]]:
    return Raw(), (torch.randn(2, 6, 5),)


@dataclass
class Answer:
    """What a network returns."""

    scores: Tensor
    features: dict[str, Tensor]


class Returns(nn.Module):
    """One body, answers of several kinds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.inner, self.a, self.b = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.inner(F.relu(self.body(x))))
        a, b = self.a(x), self.b(x)
        answers = {"tuple": (a, (b,)), "dict": {"a": a, "deep": {"b": b}}, "dataclass": Answer(a, {"b": b})}
        return answers[self.kind]


@network
def returns_tuple() -> tuple[nn.Module, tuple[Any, ...]]:
    return Returns("tuple"), (torch.randn(2, 5),)


@network
def returns_dict() -> tuple[nn.Module, tuple[Any, ...]]:
    return Returns("dict"), (torch.randn(2, 5),)


@network
def returns_dataclass() -> tuple[nn.Module, tuple[Any, ...]]:
    return Returns("dataclass"), (torch.randn(2, 5),)


@network
def frozen_parameters() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    return net, (torch.randn(2, 5),)


@network
def lstm_projected() -> tuple[nn.Module, tuple[Any, ...]]:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.LSTM(5, 8, proj_size=4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0])

    return Projected(), (torch.randn(2, 6, 5),)


@network
def embedding_bag() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.EmbeddingBag(20, 8), nn.ReLU(), nn.Linear(8, 3)), (tokens(),)
