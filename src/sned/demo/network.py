"""The demo's network: what image classifiers for small devices are made of, and too wide."""

from typing import cast

from torch import Tensor, nn

from sned.demo.data import CLASSES

_STEM = 32
_STAGES = (64, 128, 192)
_BLOCKS = 2


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm around a shortcut; `[n, in, h, w]` to `[n, out, h/s, w/s]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two convolutions make of `x` to `x` itself, or to its projection."""
        inner = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x)))


class ResidualCNN(nn.Module):
    """A residual classifier of digits: `float32 [n, 1, 32, 32]` to logits `[n, 10]`.

    A stem, three stages of two blocks, each stage halving the side, mean pooling and a linear head: 16
    convolutions with BatchNorm, 87 million MACs an image, 1.9 million parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, _STEM, 3, padding=1, bias=False), nn.BatchNorm2d(_STEM), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        width = _STEM
        for outputs in _STAGES:
            for place in range(_BLOCKS):
                blocks.append(ResidualBlock(width, outputs, stride=2 if place == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, 10]` of images `[n, 1, 32, 32]`."""
        features = self.pool(self.blocks(self.stem(images)))
        return cast(Tensor, self.head(features.flatten(1)))


def make_network() -> nn.Module:
    """Make the demo's network, untrained, in evaluation mode."""
    return ResidualCNN().eval()
