"""Small networks whose ops few networks have: Fourier transforms, complex numbers, distances, losses in the forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.registry import network


class Spectral(nn.Module):
    """Layers of a Fourier neural operator: complex weights multiply the lowest frequencies of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.modes = 3
        self.lift, self.beside, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 2, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        waves = torch.fft.rfft(x)
        low = torch.einsum("bix,iox->box", waves[:, :, : self.modes], self.weight)
        made = torch.zeros_like(waves)
        made[:, :, : self.modes] = low
        return self.head((torch.fft.irfft(made, n=x.shape[-1]) + self.beside(x)).relu())


@network
def fourier_operator() -> tuple[nn.Module, tuple[Any, ...]]:
    return Spectral(), (torch.randn(2, 3, 12),)


class ComplexRotary(nn.Module):
    """Queries and keys are turned as complex numbers; whole heads can go."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 6
        self.qkv, self.out = nn.Linear(5, 3 * 24, bias=False), nn.Linear(24, 3)

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[1]), torch.arange(3.0))
        circle = torch.polar(torch.ones_like(angles), angles)[:, None]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * circle).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q, k, v = (t.view(batch, steps, self.heads, self.width) for t in self.qkv(x).chunk(3, -1))
        q, k, v = (t.transpose(1, 2) for t in (self.turned(q), self.turned(k), v))
        y = (q @ k.transpose(-1, -2) * self.width**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, steps, -1))


@network
def complex_rotary() -> tuple[nn.Module, tuple[Any, ...]]:
    return ComplexRotary(), (torch.randn(2, 6, 5),)


class Unpooled(nn.Module):
    """Down and up again with the places that pooling found, as SegNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.a(x), 2, return_indices=True)
        return self.c(F.max_unpool2d(self.b(y), places, 2))


@network
def unpooling() -> tuple[nn.Module, tuple[Any, ...]]:
    return Unpooled(), (torch.randn(2, 3, 6, 6),)


class Pairs(nn.Module):
    """Two sides meet in a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(4, 6), nn.Bilinear(8, 6, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.c(self.a(x), self.b(y)).relu())


@network
def bilinear() -> tuple[nn.Module, tuple[Any, ...]]:
    return Pairs(), (torch.randn(2, 5), torch.randn(2, 4))


class Packed(nn.Module):
    """Texts of several lengths, packed for a recurrent layer and padded again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cells = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, words: Tensor) -> Tensor:
        lengths = torch.full((words.shape[0],), words.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(words), lengths, batch_first=True)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.cells(packed)[0], batch_first=True)[0])


@network
def packed_sequence() -> tuple[nn.Module, tuple[Any, ...]]:
    return Packed(), (torch.randint(0, 20, (2, 6)),)


class Prototypes(nn.Module):
    """Distances to learned points; the correlation of two layers on its diagonal; what a loss says of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.points = nn.Linear(5, 8), nn.Linear(5, 8), nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.a(x), F.logsigmoid(self.b(x))
        found = torch.diagonal(a.transpose(1, 2) @ a, dim1=1, dim2=2)
        return (
            torch.cdist(a, self.points),
            self.head(found * b.sum(1)),
            F.mse_loss(a, torch.zeros_like(a), reduction="sum"),
        )


@network
def distances() -> tuple[nn.Module, tuple[Any, ...]]:
    return Prototypes(), (torch.randn(2, 6, 5),)
