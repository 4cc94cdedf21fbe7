"""Biases that answer for the rounding of 8-bit weights: from unlabelled inputs, ahead of any converter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sned.graph.example import Inputs, called
from sned.surgery.twin import copied

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers with one row of weights a channel of output, which every runtime here scales by itself."""


def compensated(model: nn.Module, batches: Iterable[Inputs]) -> nn.Module:
    """A copy of a network whose biases take back what the rounding of its weights to int8 adds to each channel.

    Rounding a layer's weights `W` to `Q(W)` moves the mean of output channel `c` by
    `d_c = E[((Q(W) - W) * x)_c]`, over inputs and positions; the copy's bias is `b_c - d_c`. A layer without bias
    gets one. `Q` is symmetric, with a scale a channel, as in ONNX Runtime, LiteRT, XNNPACK and NNCF alike; scaling a
    channel (a BatchNorm that is folded later) scales its rounding, so that `d` holds after folding too.

    Args:
        model: any network; it is not touched.
        batches: inputs as it takes them, without labels.

    Reference: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
        section 4.2, with the mean measured and not derived from BatchNorm.
    """
    made = copied(model).cpu().eval()
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}
    layers: list[Any] = [module for module in made.modules() if isinstance(module, _LAYERS)]
    rounding: dict[nn.Module, Tensor] = {
        layer: rounded(layer.weight.detach()) - layer.weight.detach() for layer in layers
    }
    hooks = [
        layer.register_forward_pre_hook(partial(_add, rounding, sums, counts), with_kwargs=True)
        for layer in layers
    ]
    with torch.no_grad():
        for inputs in batches:
            called(made, inputs)
    for hook in hooks:
        hook.remove()
    for layer in (layer for layer in layers if layer in sums):
        shift = (sums[layer] / counts[layer]).to(layer.weight.dtype)
        old = layer.bias if isinstance(layer.bias, Tensor) else torch.zeros_like(shift)
        layer.bias = nn.Parameter(old.detach() - shift)
    return made


def rounded(weight: Tensor) -> Tensor:
    """Weights `[out, ...]` as 8 bits hold them: multiples of a 127th of the largest magnitude of their row."""
    scale = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round().clamp(-127, 127) * scale


def _add(
    rounding: dict[nn.Module, Tensor],
    sums: dict[nn.Module, Tensor],
    counts: dict[nn.Module, int],
    layer: Any,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
) -> None:
    """Add up what the rounding of one layer adds to its outputs."""
    x = args[0] if args else kwargs["input"]
    error = _applied(layer, x, rounding[layer]).double()
    axes = [axis for axis in range(error.ndim) if axis != _channels(layer, error)]
    sums[layer] = sums.get(layer, torch.zeros(())) + error.sum(axes)
    counts[layer] = counts.get(layer, 0) + error.numel() // error.shape[_channels(layer, error)]


def _channels(layer: Any, output: Tensor) -> int:
    axis: int = output.ndim - 1 if isinstance(layer, nn.Linear) else output.ndim - layer.weight.ndim + 1
    return axis


def _applied(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight)
    output: Tensor = layer._conv_forward(x, weight, None)
    return output
