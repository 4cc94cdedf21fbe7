"""Networks of the shapes that phones run, with random weights: for time and size, not for accuracy."""

from typing import cast

import torch
from torch import Tensor, nn

V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, outputs, repeats and first stride of each stage: Sandler et al., MobileNetV2, 2018, table 2."""

V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Outputs and stride of each separable convolution: Howard et al., MobileNets, 2017, table 1."""


class InvertedResidual(nn.Module):
    """Widen, filter by depth, narrow; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        widen = _unit(inputs, inner, 1) if expansion > 1 else []
        narrow = [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, *_unit(inner, inner, 3, stride, groups=inner), *narrow)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[n, in, h, w]` to `[n, out, h/stride, w/stride]`."""
        return cast(Tensor, x + self.conv(x) if self.shortcut else self.conv(x))


class Mobile(nn.Module):
    """A trunk of convolutions, a mean over positions, a linear head."""

    def __init__(self, features: nn.Sequential, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, 3, h, w]`."""
        return cast(Tensor, self.head(self.features(x).mean((2, 3))))


def mobilenet_v2(classes: int = 1000) -> Mobile:
    """The shape of MobileNetV2 ×1.0."""
    layers, width = _unit(3, 32, 3, 2), 32
    for expansion, outputs, repeats, stride in V2:
        for place in range(repeats):
            layers.append(InvertedResidual(width, outputs, stride if place == 0 else 1, expansion))
            width = outputs
    return _settled(Mobile(nn.Sequential(*layers, *_unit(width, 1280, 1)), 1280, classes))


def mobilenet_v1(classes: int = 1000, sparsity: float = 0.0) -> Mobile:
    """The shape of MobileNet ×1.0, with a share of zeros in its 1 × 1 convolutions and its head."""
    layers, width = _unit(3, 32, 3, 2), 32
    for outputs, stride in V1:
        layers += [*_unit(width, width, 3, stride, groups=width), *_unit(width, outputs, 1)]
        width = outputs
    model = Mobile(nn.Sequential(*layers), width, classes)
    for module in model.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            weight = module.weight.data.flatten()
            weight[weight.abs().argsort()[: round(sparsity * weight.numel())]] = 0
    return _settled(model)


def _unit(inputs: int, outputs: int, window: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, window, stride, window // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]


def _settled(model: Mobile) -> Mobile:
    """With BatchNorm statistics of real signals: those of a fresh network let them fade to denormals."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 96, 96))
    return model.eval()
