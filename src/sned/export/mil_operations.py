"""What each operation of a Core ML program (MIL) computes, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from sned.export.mil_layers import (
    Arguments,
    attention,
    batch_norm,
    conv,
    conv_transpose,
    integer,
    ints,
    layer_norm,
    lstm,
    pool,
)

Operation = Callable[[Arguments], Any]

KINDS = {
    "fp16": torch.float32,  # rounded to halves after each operation
    "fp32": torch.float32,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""Types of the format, and those that they are computed in."""


def _reshape(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(ints(a["shape"]))])


def _expand_dims(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    rank = x.dim() + len(ints(a["axes"]))
    for axis in sorted(axis % rank for axis in ints(a["axes"])):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    return x.squeeze() if a.get("axes") is None else x.squeeze(tuple(ints(a["axes"])))


def _concat(a: Arguments) -> Tensor:
    """One after the other, or (two halves of the channels, which the next layer sees mixed) taking turns."""
    parts, axis = [torch.as_tensor(value) for value in a["values"]], integer(a["axis"])
    if not a.get("interleave", False):
        return torch.cat(parts, axis)
    axis %= parts[0].ndim
    return torch.stack(parts, axis + 1).flatten(axis, axis + 1)


def _split(a: Arguments) -> list[Tensor]:
    x, axis = a["x"], integer(a["axis"])
    sizes = (
        ints(a["split_sizes"])
        if a.get("split_sizes") is not None
        else x.shape[axis] // integer(a["num_splits"])
    )
    return list(torch.split(x, sizes, axis))


def _slice_by_index(a: Arguments) -> Tensor:
    x = torch.as_tensor(a["x"])
    begin, end, rank = ints(a["begin"]), ints(a["end"]), x.dim()
    stride = ints(a["stride"]) if a.get("stride") is not None else [1] * rank
    from_start, to_end, single = (
        _flags(a.get(key), rank) for key in ("begin_mask", "end_mask", "squeeze_mask")
    )
    for axis, size in enumerate(x.shape):
        places = slice(
            None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis], stride[axis]
        )
        taken = [begin[axis] % size] if single[axis] else list(range(size)[places])
        x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64))
    gone = tuple(axis for axis in range(rank) if single[axis])
    return x.squeeze(gone) if gone else x


def _flags(value: Any, rank: int) -> list[bool]:
    return [False] * rank if value is None else [bool(flag) for flag in torch.as_tensor(value).reshape(-1)]


def _slice_by_size(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    for axis, (begin, size) in enumerate(zip(ints(a["begin"]), ints(a["size"]), strict=True)):
        x = x.narrow(axis, begin, size if size >= 0 else x.shape[axis] - begin)
    return x


def _gather(a: Arguments) -> Tensor:
    x, indices, axis = torch.as_tensor(a["x"]), torch.as_tensor(a["indices"]), integer(a.get("axis"))
    axis %= x.dim()
    wrapped = indices.reshape(-1).long() % x.shape[axis]
    return x.index_select(axis, wrapped).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _gather_nd(a: Arguments) -> Tensor:
    """What stands at places whose coordinates lie on the last axis of the indices; along the first axes row by row."""
    x, places, rows = (
        torch.as_tensor(a["x"]),
        torch.as_tensor(a["indices"]).long(),
        integer(a.get("batch_dims", 0)),
    )
    deep = places.shape[-1]
    own = [torch.arange(size) for size in places.shape[:rows]]
    spread = [one.reshape(-1, *(1,) * (places.dim() - 2 - axis)) for axis, one in enumerate(own)]
    wrapped = [places[..., axis] % x.shape[rows + axis] for axis in range(deep)]
    return x[(*spread, *wrapped)]


def _matmul(a: Arguments) -> Tensor:
    x, y = a["x"], a["y"]
    return torch.matmul(x.mT if bool(a.get("transpose_x")) else x, y.mT if bool(a.get("transpose_y")) else y)


def _reduced(function: Callable[..., Tensor]) -> Operation:
    def reduce(a: Arguments) -> Tensor:
        axes = ints(a["axes"]) if a.get("axes") is not None else list(range(a["x"].dim()))
        return function(a["x"], axes, keepdim=bool(a.get("keep_dims", False)))

    return reduce


def _pad(a: Arguments) -> Tensor:
    pads, mode = ints(a["pad"]), str(a.get("mode") or "constant")
    flat = [size for axis in reversed(range(0, len(pads), 2)) for size in pads[axis : axis + 2]]
    if mode == "constant":
        value = float(a["constant_val"]) if a.get("constant_val") is not None else 0.0
        return functional.pad(a["x"], flat, value=value)
    inner = 2 * (a["x"].dim() - 2)  # PyTorch wants nothing said of the batch and the channels
    return functional.pad(a["x"], flat[:inner], mode=mode)


def _crop(a: Arguments) -> Tensor:
    (top, bottom), (left, right) = ints(a["crop_height"]), ints(a["crop_width"])
    height, width = a["x"].shape[-2:]
    made: Tensor = a["x"][..., top : height - bottom, left : width - right]
    return made


def _upsample(a: Arguments, mode: str) -> Tensor:
    scale = [float(a["scale_factor_height"]), float(a["scale_factor_width"])]
    if (
        mode == "nearest"
    ):  # the converter makes scales a little larger, so that sizes are rounded down to the right ones
        size = [int(side * factor) for side, factor in zip(a["x"].shape[2:], scale, strict=True)]
        return functional.interpolate(a["x"], size=size, mode=mode)
    corners = bool(a.get("align_corners", True)) if mode == "bilinear" else None
    return functional.interpolate(a["x"], scale_factor=scale, mode=mode, align_corners=corners)


def _topk(a: Arguments) -> tuple[Tensor, Tensor]:
    found = a["x"].topk(integer(a["k"]), integer(a.get("axis"), -1), largest=not a.get("ascending", False))
    return found.values, found.indices


def _one_hot(a: Arguments) -> Tensor:
    chosen = functional.one_hot(a["indices"].long(), integer(a["one_hot_vector_size"])).bool()
    on, off = (torch.as_tensor(a.get(name, number)) for name, number in (("on_value", 1), ("off_value", 0)))
    return torch.where(chosen.movedim(-1, integer(a.get("axis"), -1)), on, off)


def _band_part(a: Arguments) -> Tensor:
    kept, lower, upper = (
        torch.ones(a["x"].shape[-2:]),
        integer(a.get("lower"), -1),
        integer(a.get("upper"), -1),
    )
    kept = kept if lower < 0 else kept.triu(-lower)
    return torch.where(
        (kept if upper < 0 else kept.tril(upper)).bool(), a["x"], torch.zeros((), dtype=a["x"].dtype)
    )


def _norm(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(axes, keepdim).sqrt()


def _gelu(a: Arguments) -> Tensor:
    approximate = "tanh" if "TANH" in str(a.get("mode") or "EXACT") else "none"
    return functional.gelu(a["x"], approximate=approximate)


def _unary(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda a: function(torch.as_tensor(a["x"]))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda a: function(torch.as_tensor(a["x"]), torch.as_tensor(a["y"]))


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() or y.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


OPERATIONS: Mapping[str, Operation] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "linear": lambda a: functional.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "lstm": lstm,
    "scaled_dot_product_attention": attention,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "instance_norm": lambda a: functional.instance_norm(
        a["x"], weight=a.get("gamma"), bias=a.get("beta"), eps=float(a.get("epsilon", 1e-5))
    ),
    "avg_pool": lambda a: pool(a, largest=False),
    "max_pool": lambda a: pool(a, largest=True),
    "relu": _unary(torch.relu),
    "relu6": _unary(functional.relu6),
    "leaky_relu": lambda a: functional.leaky_relu(a["x"], float(a["alpha"])),
    "prelu": lambda a: functional.prelu(a["x"], a["alpha"]),
    "elu": lambda a: functional.elu(a["x"], float(a["alpha"])),
    "gelu": _gelu,
    "silu": _unary(functional.silu),
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": lambda a: (a["x"] * float(a["alpha"]) + float(a["beta"])).clamp(0, 1),
    "softplus": _unary(functional.softplus),
    "softmax": lambda a: a["x"].softmax(integer(a.get("axis"), -1)),
    "tanh": _unary(torch.tanh),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "log": lambda a: (a["x"] + float(a.get("epsilon", 0.0))).log(),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": lambda a: (a["x"] + float(a.get("epsilon", 0.0))).rsqrt(),
    "inverse": lambda a: 1 / (a["x"] + float(a.get("epsilon", 0.0))),
    "square": _unary(torch.square),
    "abs": _unary(torch.abs),
    "floor": _unary(torch.floor),
    "ceil": _unary(torch.ceil),
    "round": _unary(torch.round),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "tan": _unary(torch.tan),
    "atan": _unary(torch.atan),
    "sign": _unary(torch.sign),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "linear_activation": lambda a: a["x"] * float(a["alpha"]) + float(a["beta"]),
    "threshold": lambda a: a["x"].clamp_min(float(a["alpha"])),
    "thresholded_relu": lambda a: torch.where(a["x"] >= float(a["alpha"]), a["x"], torch.zeros(())),
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(_divided),
    "floor_div": _binary(torch.floor_divide),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "logical_not": _unary(torch.logical_not),
    "select": lambda a: torch.where(
        torch.as_tensor(a["cond"]), torch.as_tensor(a["a"]), torch.as_tensor(a["b"])
    ),
    "cast": lambda a: torch.as_tensor(a["x"]).to(KINDS[str(a["dtype"])]),
    "identity": lambda a: a["x"],
    "reshape": _reshape,
    "transpose": lambda a: a["x"].permute(ints(a["perm"])),
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "stack": lambda a: torch.stack([torch.as_tensor(value) for value in a["values"]], integer(a["axis"])),
    "split": _split,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "gather": _gather,
    "gather_nd": _gather_nd,
    "gather_along_axis": lambda a: torch.gather(a["x"], integer(a.get("axis")), a["indices"].long()),
    "reverse": lambda a: a["x"].flip(ints(a["axes"])),
    "tile": lambda a: a["x"].repeat(ints(a["reps"])),
    "fill": lambda a: torch.full(ints(a["shape"]), torch.as_tensor(a["value"]).item()),
    "fill_like": lambda a: torch.full_like(a["ref_tensor"], torch.as_tensor(a["value"]).item()),
    "shape": lambda a: torch.tensor(a["x"].shape, dtype=torch.int32),
    "pad": _pad,
    "cumsum": lambda a: a["x"].cumsum(integer(a.get("axis"))),
    "crop": _crop,
    "pixel_unshuffle": lambda a: functional.pixel_unshuffle(a["x"], integer(a["downscale_factor"])),
    "pixel_shuffle": lambda a: functional.pixel_shuffle(a["x"], integer(a["upscale_factor"])),
    "upsample_nearest_neighbor": lambda a: _upsample(a, "nearest"),
    "upsample_bilinear": lambda a: _upsample(a, "bilinear"),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "reduce_max": _reduced(torch.amax),
    "reduce_min": _reduced(torch.amin),
    "reduce_l2_norm": _reduced(_norm),
    "reduce_log_sum_exp": _reduced(torch.logsumexp),
    "reduce_argmax": lambda a: a["x"].argmax(integer(a["axis"]), keepdim=bool(a.get("keep_dims", False))),
    "reduce_argmin": lambda a: a["x"].argmin(integer(a["axis"]), keepdim=bool(a.get("keep_dims", False))),
    "topk": _topk,
    "argsort": lambda a: a["x"].argsort(integer(a.get("axis"), -1), descending=not a.get("ascending", False)),
    "one_hot": _one_hot,
    "band_part": _band_part,
}
"""What each operation of the format computes, for those that networks are made of."""
