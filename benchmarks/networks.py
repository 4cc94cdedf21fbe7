"""The networks that the benchmarks prune: own definitions, with the names of the public weights."""

from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.data import weights


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions around a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in, h, w]` to `[n, out, h/stride, w/stride]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(inner)) + shortcut))


class CifarResNet(nn.Module):
    """ResNet for 32 × 32 images: three stages of `depth` blocks, 16, 32 and 64 channels wide.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2; the shortcuts are
    projections (their option B), as in the public weights.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, depth, stride=1)
        self.layer2 = _stage(16, 32, depth, stride=2)
        self.layer3 = _stage(32, 64, depth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, 3, 32, 32]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNetV2: half of the channels (all of them where it strides) pass three convolutions.

    Reference: Ma et al., ShuffleNet V2, 2018, figure 3 (c) and (d).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(*_depthwise(inputs, stride), *_pointwise(inputs, half))
        self.branch2 = nn.Sequential(
            *_pointwise(inputs if stride > 1 else half, half),
            *_depthwise(half, stride),
            *_pointwise(half, half),
        )
        self.strides = stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in, h, w]` to `[n, out, h/stride, w/stride]`, channels shuffled."""
        if self.strides:
            joined = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        else:
            left, right = x.chunk(2, dim=1)
            joined = torch.cat((left, self.branch2(right)), dim=1)
        return _shuffle(joined)


class CifarShuffleNetV2(nn.Module):
    """ShuffleNetV2 ×0.5 for 32 × 32 images: a 3 × 3 stem that does not stride, and no max-pool."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        )
        self.stage2 = _shuffle_stage(24, 48, 4)
        self.stage3 = _shuffle_stage(48, 96, 8)
        self.stage4 = _shuffle_stage(96, 192, 4)
        self.conv5 = nn.Sequential(*_pointwise(192, 1024))
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, 3, 32, 32]`."""
        x = self.conv5(self.stage4(self.stage3(self.stage2(self.conv1(x)))))
        return cast(Tensor, self.fc(x.mean((2, 3))))


def trained(name: str) -> nn.Module:
    """Make one of `NETWORKS` with its public weights, in evaluation mode."""
    network = NETWORKS[name]()
    network.load_state_dict(weights(name))
    return network.eval()


def _resnet20() -> nn.Module:
    return CifarResNet(depth=3)


def _resnet56() -> nn.Module:
    return CifarResNet(depth=9)


NETWORKS = {"resnet20": _resnet20, "resnet56": _resnet56, "shufflenetv2_x0_5": CifarShuffleNetV2}


def _stage(inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(depth - 1))
    )


def _shuffle_stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        ShuffleUnit(inputs, outputs, 2), *(ShuffleUnit(outputs, outputs, 1) for _ in range(depth - 1))
    )


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels, so that the next unit sees some of each."""
    n, channels, height, width = x.shape
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
