"""Small networks that cut an axis in parts of several sizes, which attributes give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.registry import network


class StateSpace(nn.Module):
    """Gate, input, state and step from one projection, as Mamba-2 has it: heads, what is inside them, and states go."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width, self.states = 4, 8, 6
        self.inner = self.heads * self.width
        self.enter = nn.Linear(5, 2 * self.inner + 2 * self.states + self.heads)
        mixed = self.inner + 2 * self.states
        self.conv = nn.Conv1d(mixed, mixed, 1, groups=mixed)
        self.rate, self.direct = nn.Parameter(torch.rand(self.heads)), nn.Parameter(torch.rand(self.heads))
        self.leave = nn.Linear(self.inner, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        gate, mixed, step = torch.split(
            self.enter(x), [self.inner, self.inner + 2 * self.states, self.heads], -1
        )
        mixed = self.conv(mixed.transpose(1, 2)).transpose(1, 2)
        u, write, read = torch.split(mixed, [self.inner, self.states, self.states], -1)
        u = u.view(batch, steps, self.heads, self.width)
        state, found = u.new_zeros(batch, self.heads, self.width, self.states), []
        for i in range(steps):
            change = torch.einsum("bh,bn,bhp->bhpn", step[:, i] * self.rate, write[:, i], u[:, i])
            state = 0.5 * state + change
            found.append(torch.einsum("bhpn,bn->bhp", state, read[:, i]))
        y = torch.stack(found, 1) + u * self.direct[:, None]
        return self.leave(y.reshape(batch, steps, self.inner) * gate)


@network
def state_space() -> tuple[nn.Module, tuple[Any, ...]]:
    return StateSpace(), (torch.randn(2, 3, 5),)


class Gated(nn.Module):
    """Layers whose conditions come from one convolution, a slice each; halves are gate and value, as in WaveGlow."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.start, self.condition = nn.Conv1d(3, 8, 1), nn.Conv1d(4, 2 * 2 * 8, 1)
        self.inside = nn.ModuleList(nn.Conv1d(8, 2 * 8, 3, padding=1) for _ in range(2))
        self.beside = nn.ModuleList(nn.Conv1d(8, 2 * 8, 1) for _ in range(2))
        self.end = nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        x, mel, skipped = self.start(x), self.condition(mel), torch.zeros(())
        for i, (inside, beside) in enumerate(zip(self.inside, self.beside, strict=True)):
            first = 2 * i * self.width
            y = inside(x) + mel[:, first : first + 2 * self.width]
            y = beside(torch.tanh(y[:, : self.width]) * torch.sigmoid(y[:, self.width :]))
            x, skipped = x + y[:, : self.width], skipped + y[:, self.width :]
        return self.end(skipped + x)


@network
def gates_by_slices() -> tuple[nn.Module, tuple[Any, ...]]:
    return Gated(), (torch.randn(2, 3, 6), torch.randn(2, 4, 6))


class Generated(nn.Module):
    """The matrix and the bias of a layer are worked out by another: of one axis the first `inner * outer` are one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = 8, 6
        self.before, self.maker = nn.Linear(5, 8), nn.Linear(4, 8 * 6 + 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        made, size = self.maker(condition), self.inner * self.outer
        weight, bias = made[:, :size].view(-1, self.outer, self.inner), made[:, size:]
        return self.head(torch.bmm(weight, self.before(x).unsqueeze(-1)).squeeze(-1) + bias)


@network
def generated_weights() -> tuple[nn.Module, tuple[Any, ...]]:
    return Generated(), (torch.randn(2, 5), torch.randn(2, 4))


class Steps(nn.Module):
    """An ordinary differential equation in steps of Euler's; time has the shape of one column of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(5, 12), nn.Linear(12, 3)
        self.slope = nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.start(x)
        for step in range(3):
            y = y + 0.1 * self.slope(torch.cat([y, torch.full_like(y[:, :1], 0.1 * step)], 1))
        return self.end(y)


@network
def differential_equation() -> tuple[nn.Module, tuple[Any, ...]]:
    return Steps(), (torch.randn(2, 5),)


class Retention(nn.Module):
    """Heads whose outputs a group norm takes apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(5, 32)
        self.norm, self.out = nn.GroupNorm(self.heads, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q, k, v = (p(x).view(batch, steps, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)) @ v
        return self.out(self.norm(y.transpose(1, 2).reshape(batch * steps, -1)).view(batch, steps, -1))


class Modulated(nn.Module):
    """A convolution whose weight each sample scales for itself: samples are groups, as in StyleGAN2."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = 8, 6
        self.before, self.style = nn.Conv2d(3, 8, 1), nn.Linear(4, 8)
        self.weight, self.head = nn.Parameter(torch.randn(1, 6, 8, 3, 3)), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.before(x)
        batch, channels, height, width = x.shape
        weight = self.weight * self.style(style).view(batch, 1, channels, 1, 1)
        strength = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-6)
        weight = (weight * strength.view(batch, self.outputs, 1, 1, 1)).view(
            batch * self.outputs, channels, 3, 3
        )
        y = F.conv2d(x.reshape(1, batch * channels, height, width), weight, padding=1, groups=batch)
        return self.head(y.view(batch, self.outputs, height, width))


@network
def modulated_convolution() -> tuple[nn.Module, tuple[Any, ...]]:
    return Modulated(), (torch.randn(2, 3, 5, 5), torch.randn(2, 4))
