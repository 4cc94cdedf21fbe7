"""torchvision: its 80 classifiers; segmentation, optical flow, video, and detection as far as it runs here.

Images are as small as a network takes them without losing a part of its structure (64 pixels, where nothing
else is said): labels do not depend on them, and the dense network is run many times.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.network import Network, images
from sned.cli.zoo import from_zoo, import_torchvision

_SIDES = {"vit_": 224, "maxvit": 224, "swin": 112, "inception": 299}
"""Pixels a side by the beginning of the name, where 64 do not do."""


def classifiers() -> list[Network]:
    """All that `torchvision.models.list_models` lists among the classifiers."""
    return [
        Network("torchvision", name, partial(from_zoo, "torchvision", name), images(_side(name)))
        for name in _listed()
    ]


def dense_predictors() -> list[Network]:
    """Segmentation, optical flow, video; and detectors up to post-processing, which is compiled."""
    segmentation = [
        _other(name, lambda batch: torch.randn(batch, 3, 64, 64), weights_backbone=None)
        for name in _listed("segmentation")
    ]
    flow = [_other(name, _two_frames) for name in _listed("optical_flow")]
    video = [_other(name, _clips(16, 64)) for name in ("r3d_18", "mc3_18", "r2plus1d_18")]
    video += [_other("s3d", _clips(16, 224)), _other("swin3d_t", _clips(8, 112))]
    video += [_other("mvit_v1_b", _clips(16, 224))]
    detection = [
        Network("others", f"{name}:heads", partial(_detector, name), images(side))
        for name, side in _DETECTORS.items()
    ]
    return [*segmentation, *flow, *video, *detection]


_DETECTORS = {
    "retinanet_resnet50_fpn": 128,
    "retinanet_resnet50_fpn_v2": 128,
    "fcos_resnet50_fpn": 128,
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 128,
    "fasterrcnn_mobilenet_v3_large_fpn": 128,
    "fasterrcnn_resnet50_fpn": 128,
}


class Heads(nn.Module):
    """A detector from images to raw scores and box offsets of every anchor: backbone, pyramid and heads."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, x: Tensor) -> Any:
        """What the heads return, of images `[n, 3, h, w]`."""
        features = self.backbone(x)
        return self.head(list(features.values()) if isinstance(features, dict) else [features])


def _detector(name: str) -> nn.Module:
    return Heads(_models().get_model(name, weights=None, weights_backbone=None))


def _other(name: str, example: Any, **options: Any) -> Network:
    def build() -> nn.Module:
        model: nn.Module = _models().get_model(name, weights=None, **options)
        return model

    return Network("others", name, build, example)


def _two_frames(batch: int) -> dict[str, Any]:
    return {
        "image1": torch.randn(batch, 3, 128, 128),
        "image2": torch.randn(batch, 3, 128, 128),
        "num_flow_updates": 2,
    }


def _clips(frames: int, side: int) -> Callable[[int], Tensor]:
    def example(batch: int) -> Tensor:
        return torch.randn(batch, 3, frames, side, side)

    return example


def _models() -> Any:
    import_torchvision()
    return importlib.import_module("torchvision.models")


def _listed(module: str = "") -> list[str]:
    models = _models()
    found: list[str] = models.list_models(module=getattr(models, module) if module else models)
    return found


def _side(name: str) -> int:
    return next((side for start, side in _SIDES.items() if name.startswith(start)), 64)
