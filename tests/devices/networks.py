"""Small networks that are wide enough for a runtime to treat them as it treats large ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sned.graph import Graph, Plan


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


class Residual(nn.Module):
    """Stem, max pooling, three blocks, mean, classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1)
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, concatenation, pooling, squeeze-excite, a BatchNorm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point = nn.Conv2d(32, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=2)
        self.left, self.right = nn.Conv2d(64, 32, 1), nn.Conv2d(64, 48, 1)
        self.norm = nn.BatchNorm2d(80)
        self.reduce, self.expand = nn.Conv2d(80, 16, 1), nn.Conv2d(16, 80, 1)
        self.last, self.head = nn.Conv2d(80, 32, 3), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu6(self.stem(x))))
        x = F.silu(self.grouped(F.relu(self.point(x))))
        x = F.relu(self.norm(torch.cat([F.relu(self.left(x)), F.avg_pool2d(self.right(x), 3, 1, 1)], 1)))
        x = x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Swish(nn.Module):
    """Convolutions of each kind, behind each of them an activation that the runtime takes in only in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.point, self.grouped = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=4)
        self.last, self.head = nn.Conv2d(64, 48, 1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.stem, self.depthwise, self.point, self.grouped, self.last):
            x = F.hardswish(conv(x))
        return self.head(x.mean((2, 3)))


def trained(model: nn.Module) -> nn.Module:
    """As if trained: no constant is zero, which an optimiser would drop."""
    generator = torch.Generator().manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) * 0.1 + 0.01
    return model.eval()


def plan_of(graph: Graph, counts: NDArray[np.float64]) -> Plan:
    """The plan that keeps the first units of every cell."""
    removed = {}
    for group, count in zip(graph.groups, counts, strict=True):
        each = int(count) // group.cell_count
        gone = [u for cell in range(group.cell_count) for u in np.flatnonzero(group.cells == cell)[each:]]
        if gone:
            removed[group.name] = sorted(int(unit) for unit in gone)
    return graph.plan(removed)


def sizes(graph: Graph) -> NDArray[np.float64]:
    """Units in every group."""
    return np.array([group.size for group in graph.groups], dtype=np.float64)


def random_counts(
    graph: Graph, rng: np.random.Generator, low: float = 0.1, high: float = 1.0
) -> NDArray[np.float64]:
    """Units kept in every group, as many in every cell."""
    cells = np.array([group.cell_count for group in graph.groups])
    each = sizes(graph) / cells
    return np.clip(np.rint(each * rng.uniform(low, high, len(each))), 1, each) * cells


class Encoder(nn.Module):
    """A layer of a transformer without its attention: linear layers over tokens, and sums that are normalised."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.project, self.widen = nn.Linear(width, width), nn.Linear(width, 4 * width)
        self.narrow, self.head = nn.Linear(4 * width, width), nn.Linear(width, 10)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.project(x))
        x = self.norm2(self.narrow(F.gelu(self.widen(x))) + x)
        return self.head(torch.tanh(self.narrow(F.gelu(self.widen(x)))[:, 0]))
