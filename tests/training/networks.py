"""Small networks and data that train in a second."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class DigitNet(nn.Module):
    """Two convolutions with BatchNorm, dropout, and a head: digits `[n, 1, 8, 8]` to logits `[n, 10]`."""

    def __init__(self, width: int = 12, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.head(self.drop(x.mean((2, 3))))


def digit_net(seed: int = 0, **options: float) -> DigitNet:
    """A `DigitNet` with weights of its own."""
    torch.manual_seed(seed)
    return DigitNet(**options)


def digits(start: int = 0, stop: int = 600) -> tuple[Tensor, Tensor]:
    """Some of scikit-learn's digits, `[n, 1, 8, 8]` in [0, 1], and their classes."""
    data = load_digits()
    images = torch.tensor(data.images[start:stop], dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target[start:stop])


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share classified right, in evaluation mode."""
    with torch.no_grad():
        return float((model.eval()(inputs).argmax(1) == labels).double().mean())


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks hold bitwise the same numbers."""
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())
