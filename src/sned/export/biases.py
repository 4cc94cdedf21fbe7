"""Biases that answer for the rounding of 8-bit weights: from unlabelled inputs, ahead of any converter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sned.graph.example import Inputs, called
from sned.surgery.twin import copied

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers with one row of weights a channel of output, which every runtime here scales by itself."""

_READERS = {nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d, nn.functional.linear}
_TENSORS = ("input", "weight", "bias")


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
    layers: list[Any] = [module for module in made.modules() if isinstance(module, _LAYERS)]
    watch = _Watch({id(layer.weight): layer.weight.detach() for layer in layers})
    with torch.no_grad(), watch:
        for inputs in batches:
            called(made, inputs)
    for layer in layers:
        bias, mean = layer.bias, watch.mean(layer.weight, layer.bias)
        if mean is not None:
            shift = mean.to(layer.weight.dtype)
            layer.bias = nn.Parameter(-shift if bias is None else bias.detach() - shift)
    return made


def rounded(weight: Tensor) -> Tensor:
    """Weights `[out, ...]` as 8 bits hold them: multiples of a 127th of the largest magnitude of their row."""
    scale = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round().clamp(-127, 127) * scale


class _Watch(TorchFunctionMode):
    """Adds up what the rounding of weights adds to the outputs of whatever reads them, layer or not.

    A layer that makes other weights of its own first, as standardised convolutions do, is left out: the file rounds
    those.

    Args:
        weights: by identity, those to watch.
    """

    def __init__(self, weights: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._rounding = {key: rounded(weight) - weight for key, weight in weights.items()}
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def mean(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """What each channel is off by in the mean; None where no op read the two together."""
        key = id(weight), id(bias)
        return self._sums[key] / self._counts[key] if key in self._sums else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The op, as it is asked for, and once more with the rounding alone."""
        del types
        kwargs = kwargs or {}
        if func in _READERS:
            given = {**dict(zip(_TENSORS, args, strict=False)), **kwargs}
            rounding = self._rounding.get(id(given["weight"]))
            if rounding is not None:
                settings = {name: value for name, value in kwargs.items() if name not in _TENSORS}
                error = func(given["input"], rounding, None, *args[3:], **settings)
                self._add((id(given["weight"]), id(given.get("bias"))), error.double(), rounding)
        return func(*args, **kwargs)

    def _add(self, key: tuple[int, int], error: Tensor, rounding: Tensor) -> None:
        channel = error.ndim - rounding.ndim + 1
        axes = [axis for axis in range(error.ndim) if axis != channel]
        self._sums[key] = self._sums.get(key, torch.zeros(())) + error.sum(axes)
        self._counts[key] = self._counts.get(key, 0) + error.numel() // error.shape[channel]
