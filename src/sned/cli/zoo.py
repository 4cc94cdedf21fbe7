"""`torchvision:resnet50` and `timm:resnet50`, where those are installed."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from sned.errors import NotFoundError, UserError, close_names

if TYPE_CHECKING:
    from torch import nn

_SCHEMAS = (
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor",
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float input_scale, int input_zero_point, float rois_scale, "
    "int rois_zero_point, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int "
    "sampling_ratio, "
    "bool aligned) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
    "-> (Tensor, Tensor)",
)
"""Operators that torchvision's Python registers shapes for when it is imported."""

_kept_alive: list[Any] = []


def from_zoo(library: str, name: str) -> "nn.Module":
    """Build a model of torchvision or timm, with fresh weights.

    Args:
        library: "torchvision" or "timm".
        name: of the model, as that library knows it.

    Raises:
        NotFoundError: the library is not installed, or has no such model; close names are listed.
    """
    return {"torchvision": _torchvision, "timm": _timm}[library](name)


LIBRARIES = ("torchvision", "timm")


def import_torchvision() -> None:
    """Import torchvision, also where its compiled operators do not fit the PyTorch that is installed.

    Its Python then fails at declaring the shapes of operators that are not there (detection's `nms` and
    others). No classifier calls them: they are declared without an implementation, and a network that does
    call one is told so by PyTorch.

    Raises:
        NotFoundError: torchvision is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        raise NotFoundError("torchvision is not installed: run `pip install torchvision`.") from error
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise UserError(f"torchvision cannot be imported: {error}") from error
        _declare_operators()
        importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _kept_alive.append(library)  # definitions go with the object that made them
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _torchvision(name: str) -> "nn.Module":
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    known = models.list_models()
    if name not in known:
        raise NotFoundError(f"torchvision has no model '{name}'. {close_names(name, known)}")
    model: nn.Module = models.get_model(name, weights=None)
    return model


def _timm(name: str) -> "nn.Module":
    import_torchvision()
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise NotFoundError("timm is not installed: run `pip install timm`.") from error
    known = timm.list_models()
    if name not in known:
        raise NotFoundError(f"timm has no model '{name}'. {close_names(name, known)}")
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model
