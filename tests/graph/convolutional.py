"""Small networks of convolutions: shortcuts, concatenations, groups, shuffles, other ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.registry import network


class Residual(nn.Module):
    """Stem, a block whose shortcut is the identity, one whose shortcut is a strided conv, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 1, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        x = F.relu(self.down(x) + self.b2(F.relu(self.b1(x))))
        return self.fc(x.mean((2, 3)))


@network
def residual() -> tuple[nn.Module, tuple[Any, ...]]:
    return Residual(), (torch.randn(2, 3, 8, 8),)


class Auxiliary(nn.Module):
    """A second head that only training sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.body, self.fc, self.aux_fc = nn.Conv2d(8, 10, 3, padding=1), nn.Linear(10, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.stem(x))
        out = self.fc(F.relu(self.body(x)).mean((2, 3)))
        return (out, self.aux_fc(F.relu(self.aux(x)).mean((2, 3)))) if self.training else (out,)


@network
def auxiliary() -> tuple[nn.Module, tuple[Any, ...]]:
    return Auxiliary(), (torch.randn(2, 3, 8, 8),)


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 4 * i) for i in range(3))
        self.stem, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return self.fc(F.adaptive_avg_pool2d(torch.cat(parts, 1), 1).flatten(1))


@network
def dense() -> tuple[nn.Module, tuple[Any, ...]]:
    return Dense(), (torch.randn(2, 3, 6, 6),)


class Branches(nn.Module):
    """Inception-like: three branches of different widths, concatenated, then summed with a fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b1, self.b2 = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.c, self.d, self.head = nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b2(self.b1(x)), self.c(F.max_pool2d(x, 3, 1, 1))], 1)
        return self.head(F.relu(y + self.d(x)))


@network
def multi_branch() -> tuple[nn.Module, tuple[Any, ...]]:
    return Branches(), (torch.randn(2, 3, 6, 6),)


@network
def flattened() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )
    return net, (torch.randn(2, 3, 8, 8),)


@network
def depthwise() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def depthwise_multiplier() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 4, 1))
    return net, (torch.randn(2, 3, 6, 6),)


@network
def grouped() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, groups=4, padding=1),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 4, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def grouped_twice() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 4, 1),
    )
    return net, (torch.randn(2, 3, 7, 7),)


@network
def transposed() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 3, 3)
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def transposed_grouped() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.ReLU(), nn.Conv2d(12, 3, 1)
    )
    return net, (torch.randn(2, 3, 6, 6),)


class SqueezeExcite(nn.Module):
    """A gate from the pooled channels multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate)


@network
def squeeze_excite() -> tuple[nn.Module, tuple[Any, ...]]:
    return SqueezeExcite(), (torch.randn(2, 3, 6, 6),)


class Shuffle(nn.Module):
    """ShuffleNet: half the channels pass, the rest is worked on, and both are interleaved; sizes from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, branch(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(x))


@network
def channel_shuffle() -> tuple[nn.Module, tuple[Any, ...]]:
    return Shuffle(), (torch.randn(2, 3, 6, 6),)


@network
def channel_shuffle_module() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 12, 1, groups=3),
        nn.ChannelShuffle(3),
        nn.Conv2d(12, 12, 3, groups=3),
        nn.Conv2d(12, 4, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


class Split(nn.Module):
    """Parts of unequal size, by numbers that the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 8]
        self.stem, self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), self.sizes, dim=1)
        return self.head(self.a(a) * self.b(b))


@network
def channel_split() -> tuple[nn.Module, tuple[Any, ...]]:
    return Split(), (torch.randn(2, 3, 6, 6),)


@network
def pixel_shuffle() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 24, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(6, 3, 1),
    )
    return net, (torch.randn(2, 3, 5, 5),)


@network
def pixel_unshuffle() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.PixelUnshuffle(2),
        nn.Conv2d(24, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def conv_1d() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 4, 3, dilation=2)
    )
    return net, (torch.randn(2, 3, 16),)


@network
def conv_3d() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(8, 4, 1))
    return net, (torch.randn(2, 3, 6, 6, 6),)


class SharedTwice(nn.Module):
    """One layer, called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(F.relu(self.shared(self.stem(x))))))


@network
def shared_twice() -> tuple[nn.Module, tuple[Any, ...]]:
    return SharedTwice(), (torch.randn(2, 3, 6, 6),)


class UNet(nn.Module):
    """Down, up, and the skip concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 10, 3, 2, 1),
            nn.Conv2d(10, 10, 3, padding=1),
        )
        self.up, self.d, self.head = (
            nn.ConvTranspose2d(10, 6, 2, 2),
            nn.Conv2d(12, 6, 3, padding=1),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        x = self.up(F.relu(self.c(F.relu(self.b(a)))))
        return self.head(F.relu(self.d(torch.cat([x, a], 1))))


@network
def unet() -> tuple[nn.Module, tuple[Any, ...]]:
    return UNet(), (torch.randn(2, 3, 8, 8),)


class Written(nn.Module):
    """The middle channels are replaced; the numbers are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.stop = 2, 6
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, self.start : self.stop] = self.b(x)
        return self.head(F.relu(y))


@network
def written_slice() -> tuple[nn.Module, tuple[Any, ...]]:
    return Written(), (torch.randn(2, 3, 4, 4),)


class Shifted(nn.Module):
    """Temporal shift: some channels come from the step before, some from the one after."""

    def __init__(self) -> None:
        super().__init__()
        self.fold, self.a, self.head = 2, nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = torch.zeros_like(x)
        y[:, : self.fold, :-1] = x[:, : self.fold, 1:]
        y[:, self.fold : 2 * self.fold, 1:] = x[:, self.fold : 2 * self.fold, :-1]
        y[:, 2 * self.fold :] = x[:, 2 * self.fold :]
        return self.head(F.relu(y))


@network
def temporal_shift() -> tuple[nn.Module, tuple[Any, ...]]:
    return Shifted(), (torch.randn(2, 3, 6),)


@network
def weight_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 1))
    return nn.Sequential(conv, nn.ReLU(), nn.Conv1d(8, 4, 1)), (torch.randn(2, 3, 6),)


class Windows(nn.Module):
    """Unfolded, gated and folded again; windows of an axis; sampled at given places; cut off beyond a diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.g = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
        places = torch.rand(1, 5, 5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        columns = F.unfold(y, 3, padding=1)
        folded = F.fold(columns * torch.sigmoid(columns), x.shape[2:], 3, padding=1)
        sampled = F.grid_sample(folded, self.places.expand(len(x), -1, -1, -1), align_corners=False)
        return self.g(self.o(sampled + y.unfold(2, 2, 1).sum(-1)[:, :, :5, :5].tril()).relu())


@network
def windows() -> tuple[nn.Module, tuple[Any, ...]]:
    return Windows(), (torch.randn(2, 3, 8, 8),)


class Overlapping(nn.Module):
    """Windows of four steps, each of which shares two with the next, as a view of the memory underneath."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).contiguous()
        batch, steps, width = x.shape
        strides = (steps * width, 2 * width, width, 1)
        windows = x.as_strided((batch, (steps - 2) // 2, 4, width), strides)
        return self.c(self.b(windows.sum(2)).relu())


@network
def overlapping_windows() -> tuple[nn.Module, tuple[Any, ...]]:
    return Overlapping(), (torch.randn(2, 8, 5),)
