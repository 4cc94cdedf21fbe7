"""What the layers of a Core ML program (MIL) compute, in PyTorch: convolutions, pools, norms, attention, LSTMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

Arguments = Mapping[str, Any]


def ints(value: Any) -> list[int]:
    """A list of whole numbers, of a tensor or of one number."""
    return [int(number) for number in torch.as_tensor(value).reshape(-1)]


def integer(value: Any, default: int = 0) -> int:
    """A whole number, and what it is where nothing is said."""
    return default if value is None else int(value)


def _padding(a: Arguments, spatial: int, sizes: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """What `functional.pad` is given: the last axis first."""
    kind = a.get("pad_type") or "valid"
    strides = ints(a["strides"]) if a.get("strides") is not None else [1] * spatial
    dilations = ints(a["dilations"]) if a.get("dilations") is not None else [1] * spatial
    pairs = []
    for axis in range(spatial):
        if kind == "custom":
            pairs.append(tuple(ints(a["pad"])[2 * axis : 2 * axis + 2]))
            continue
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        whole = max((-(-sizes[axis] // strides[axis]) - 1) * strides[axis] + reach - sizes[axis], 0)
        less, more = whole // 2, whole - whole // 2
        pairs.append({"same": (less, more), "same_lower": (more, less)}.get(kind, (0, 0)))
    return [size for pair in reversed(pairs) for size in pair]


def conv(a: Arguments) -> Tensor:
    """A convolution along one, two or three axes."""
    x, weight = a["x"], a["weight"]
    spatial = weight.dim() - 2
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[spatial]
    padded = functional.pad(x, _padding(a, spatial, x.shape[2:], weight.shape[2:]))
    made: Tensor = convolve(
        padded,
        weight,
        a.get("bias"),
        stride=ints(a["strides"]) if a.get("strides") is not None else 1,
        dilation=ints(a["dilations"]) if a.get("dilations") is not None else 1,
        groups=integer(a.get("groups"), 1),
    )
    return made


def conv_transpose(a: Arguments) -> Tensor:
    """A transposed convolution."""
    x, weight = a["x"], a["weight"]
    spatial = weight.dim() - 2
    convolve = {
        1: functional.conv_transpose1d,
        2: functional.conv_transpose2d,
        3: functional.conv_transpose3d,
    }[spatial]
    full: Tensor = convolve(
        x,
        weight,
        a.get("bias"),
        stride=ints(a["strides"]) if a.get("strides") is not None else 1,
        dilation=ints(a["dilations"]) if a.get("dilations") is not None else 1,
        groups=integer(a.get("groups"), 1),
    )
    pads = ints(a["pad"]) if (a.get("pad_type") or "valid") == "custom" else [0] * 2 * spatial
    wanted = ints(a["output_shape"]) if a.get("output_shape") is not None else None
    for axis in range(spatial):
        size = full.shape[2 + axis] - pads[2 * axis] - pads[2 * axis + 1]
        size = wanted[2 + axis] if wanted else size
        full = functional.pad(
            full, [0] * 2 * (spatial - 1 - axis) + [0, max(0, pads[2 * axis] + size - full.shape[2 + axis])]
        )
        full = full.narrow(2 + axis, pads[2 * axis], size)
    return full


def pool(a: Arguments, *, largest: bool) -> Tensor:
    """The largest or the mean of each window."""
    x, kernel = a["x"], ints(a["kernel_sizes"])
    spatial = len(kernel)
    strides = ints(a["strides"]) if a.get("strides") is not None else kernel
    pads = _padding(a, spatial, x.shape[2:], kernel)
    if bool(a.get("ceil_mode", False)):
        for place, axis in enumerate(reversed(range(spatial))):
            size = x.shape[2 + axis] + pads[2 * place] + pads[2 * place + 1]
            pads[2 * place + 1] += -(size - kernel[axis]) % strides[axis]
    highest = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[spatial]
    mean = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[spatial]
    if largest:
        return highest(functional.pad(x, pads, value=float("-inf")), kernel, strides)
    filled = mean(functional.pad(x, pads), kernel, strides)
    if bool(a.get("exclude_padding_from_average", False)):
        return filled / mean(functional.pad(torch.ones_like(x), pads), kernel, strides)
    return filled


def layer_norm(a: Arguments) -> Tensor:
    """Normalised over some axes."""
    x: Tensor = a["x"]
    axes = [axis % x.dim() for axis in ints(a["axes"])]
    return functional.layer_norm(
        x, [x.shape[axis] for axis in axes], a.get("gamma"), a.get("beta"), float(a.get("epsilon", 1e-5))
    )


def batch_norm(a: Arguments) -> Tensor:
    """Normalised by what is known of each channel."""
    return functional.batch_norm(
        a["x"],
        a["mean"],
        a["variance"],
        a.get("gamma"),
        a.get("beta"),
        False,
        0.0,
        float(a.get("epsilon", 1e-5)),
    )


def attention(a: Arguments) -> Tensor:
    """Scaled dot-product attention."""
    return functional.scaled_dot_product_attention(
        a["query"], a["key"], a["value"], attn_mask=a.get("attn_mask")
    )


def lstm(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Every step or the last one, then the last hidden state and the last cell; in two directions side by side."""
    ways = ("", "_back") if a["direction"] == "bidirectional" else ("",)
    states = zip(ways, *(a[key].chunk(len(ways), -1) for key in ("initial_h", "initial_c")), strict=True)
    run = [_lstm_way(a, way, hidden, cell) for way, hidden, cell in states]
    steps, hidden, cell = (torch.cat(parts, -1) for parts in zip(*run, strict=True))
    return (steps if a.get("output_sequence") else hidden[None]), hidden, cell


def _lstm_way(a: Arguments, way: str, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    back = way == "_back" or a["direction"] == "reverse"
    entering = functional.linear(a["x"], a[f"weight_ih{way}"], a.get(f"bias{way}"))
    steps = []
    for step in entering.flip(0) if back else entering:
        gates = step + functional.linear(hidden, a[f"weight_hh{way}"])
        taken, kept, given, new = gates.chunk(4, -1)
        cell = kept.sigmoid() * cell + taken.sigmoid() * new.tanh()
        hidden = given.sigmoid() * cell.tanh()
        steps.append(hidden)
    made = torch.stack(steps)
    return made.flip(0) if back else made, hidden, cell
