"""Random small CNNs: a program of steps over feature maps, and the module that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

MAX_CHANNELS = 24
SIDE = 8


@dataclass(frozen=True)
class Step:
    """One step: what it does, which earlier feature maps it reads, and up to three numbers that shape it."""

    kind: str
    reads: tuple[int, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """Channels and side of a feature map."""

    channels: int
    side: int


def divisor(numbers: tuple[int, ...], *of: int) -> int:
    """A common divisor of `of`, picked by the second number."""
    common = gcd(*of)
    divisors = [d for d in range(1, common + 1) if common % d == 0]
    return divisors[numbers[1] % len(divisors)]


class Conv(nn.Module):
    """A convolution with groups and stride, with or without BatchNorm and ReLU."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        out, groups = 2 + 2 * (numbers[0] % 6), divisor(numbers, source.channels, 2 + 2 * (numbers[0] % 6))
        stride = 1 + (numbers[2] % 3 == 0 and source.side > 2)
        self.conv = nn.Conv2d(
            source.channels, out, 1 + 2 * (numbers[2] % 2), stride, numbers[2] % 2, groups=groups
        )
        self.norm = nn.BatchNorm2d(out) if numbers[0] % 2 else None
        self.result = Map(out, -(-source.side // stride))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x if self.norm is None else self.norm(x))


class Depthwise(nn.Module):
    """A depthwise convolution, with a multiplier."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        out = source.channels * (1 + numbers[0] % 2 * (source.channels * 2 <= MAX_CHANNELS))
        self.conv = nn.Conv2d(
            source.channels, out, 3, padding=1, groups=source.channels, bias=bool(numbers[1] % 2)
        )
        self.result = Map(out, source.side)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pool(nn.Module):
    """Max or average pooling."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        stride = 2 if source.side > 2 else 1
        self.pool: nn.Module = (
            [nn.MaxPool2d, nn.AvgPool2d][numbers[0] % 2](2, stride) if stride == 2 else nn.Identity()
        )
        self.result = Map(source.channels, source.side // stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class Norm(nn.Module):
    """BatchNorm, affine or not, and a smooth activation."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.norm, self.result = nn.BatchNorm2d(source.channels, affine=bool(numbers[0] % 3)), source

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class Gate(nn.Module):
    """Squeeze-excite."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        hidden = 2 + numbers[0] % 4
        self.down, self.up = nn.Conv2d(source.channels, hidden, 1), nn.Conv2d(hidden, source.channels, 1)
        self.result = source

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Shuffle(nn.Module):
    """Interleave the channels of groups; sizes are read from the tensor."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.groups, self.result = divisor(numbers, source.channels), source

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Halves(nn.Module):
    """The first half of the channels gates the second."""

    def __init__(self, source: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.pad = source.channels % 2
        self.result = Map(source.channels // 2, source.side) if source.channels % 2 == 0 else source

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            return x
        a, b = x.chunk(2, 1)
        return torch.sigmoid(a) * b


class Fit(nn.Module):
    """Bring a feature map to the size of another one, with its channels where these must agree."""

    def __init__(self, source: Map, target: Map, *, channels: bool) -> None:
        super().__init__()
        self.side = target.side if source.side != target.side else None
        project = channels and source.channels != target.channels
        self.conv = nn.Conv2d(source.channels, target.channels, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.side is None else F.adaptive_avg_pool2d(x, self.side))


class Sum(nn.Module):
    """The sum or product of two feature maps."""

    def __init__(self, first: Map, second: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.fit, self.product, self.result = Fit(second, first, channels=True), numbers[0] % 4 == 0, first

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * self.fit(y) if self.product else x + self.fit(y)


class Cat(nn.Module):
    """Two feature maps side by side."""

    def __init__(self, first: Map, second: Map, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.fit, self.single = (
            Fit(second, first, channels=False),
            first.channels + second.channels > 2 * MAX_CHANNELS,
        )
        self.result = first if self.single else Map(first.channels + second.channels, first.side)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x if self.single else torch.cat([x, self.fit(y)], 1)


ONE: dict[str, Callable[[Map, tuple[int, ...]], nn.Module]] = {
    "conv": Conv, "depthwise": Depthwise, "pool": Pool, "norm": Norm, "gate": Gate, "shuffle": Shuffle, "halves": Halves,
}  # fmt: skip
TWO: dict[str, Callable[[Map, Map, tuple[int, ...]], nn.Module]] = {"sum": Sum, "cat": Cat}


class RandomCnn(nn.Module):
    """Runs a program; every feature map that nothing reads goes into the head."""

    def __init__(self, program: tuple[Step, ...]) -> None:
        super().__init__()
        maps = [Map(3, SIDE)]
        self.steps = nn.ModuleList()
        self.reads = [tuple(r % (number + 1) for r in step.reads) for number, step in enumerate(program)]
        for step, reads in zip(program, self.reads, strict=True):
            given = [maps[r] for r in reads]
            made = (
                ONE[step.kind](given[0], step.numbers)
                if step.kind in ONE
                else TWO[step.kind](*given, step.numbers)
            )
            self.steps.append(made)
            result = made.result
            assert isinstance(result, Map)
            maps.append(result)
        read = {r for reads in self.reads for r in reads}
        self.left = [number for number in range(len(maps)) if number not in read]
        self.spread = len(self.left) % 2 == 0
        features = sum(maps[n].channels * (1 if self.spread else maps[n].side ** 2) for n in self.left)
        self.hidden, self.head = nn.Linear(features, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for step, reads in zip(self.steps, self.reads, strict=True):
            maps.append(step(*(maps[r] for r in reads)))
        left = [maps[n].mean((2, 3)) if self.spread else maps[n].flatten(1) for n in self.left]
        return self.head(F.relu(self.hidden(torch.cat(left, 1))))


@st.composite
def programs(draw: st.DrawFn, longest: int = 9) -> tuple[Step, ...]:
    """Programs that begin with a convolution; later steps read recent feature maps more often than old ones."""
    numbers = st.tuples(*[st.integers(0, 11)] * 3)
    steps = [Step("conv", (0,), draw(numbers))]
    kinds = [*ONE, "conv", "conv", *TWO, *TWO]
    for number in range(1, draw(st.integers(2, longest))):
        kind = draw(st.sampled_from(kinds))
        back = [draw(st.integers(1, min(number, 4))) for _ in range(1 if kind in ONE else 2)]
        steps.append(Step(kind, tuple(number + 1 - b for b in back), draw(numbers)))
    return tuple(steps)
