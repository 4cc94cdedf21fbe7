"""What a consumer reads and writes, as columns: patches `[parts, width, n]` beside outputs `[parts, outputs,
n]`.

All patches are exact and cost one copy. Where they are more than enough, or the products would take too long (`MACS`),
a random choice of positions stands for all of them, drawn anew for every chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sned.calibration.consumers import Consumer, Geometry
from sned.graph.ir import Graph

MACS = 3.0e10
"""Multiply-accumulates that the moments of one consumer may take: all patches of 1,024 images of CIFAR-10."""

ENOUGH = 2**16
"""Patches that are taken of narrow consumers at most ..."""

ENOUGH_PER_ENTRY = 256
"""... and for each entry of wider ones: more would say the same, since those of one input are alike."""

LEAST_PATCHES_PER_ENTRY = 12
"""Patches for each entry that are taken at least, whatever they cost: fewer and the moments are noise."""

CHUNK_VALUES = 2**21
"""Numbers in one chunk of patches: 8 MB stay near the cache, and memory for them is reused."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Patches `x` `[parts, width, n]`; at the same positions `values`, each `[parts, outputs, n]`."""

    x: Tensor
    values: tuple[Tensor, ...]


def patches_of(consumer: Consumer, graph: Graph) -> float:
    """How many patches of one input a consumer reads, in each part."""
    made = prod(graph.tensors[consumer.output].shape) // (consumer.outputs * consumer.parts)
    if consumer.geometry is None and consumer.parts > 1:
        made = graph.tensors[consumer.output].shape[1]
    return made / graph.batch


def macs_of(consumer: Consumer, graph: Graph) -> float:
    """Multiply-accumulates that a consumer takes for one input."""
    return patches_of(consumer, graph) * consumer.parts * consumer.outputs * consumer.width


def inputs_within(macs: float, each: float, fewest: int, most: int) -> int:
    """How many inputs take no more than `macs` at `each` an input, but `fewest` to `most` in any case."""
    return max(fewest, min(most, int(macs // max(each, 1))))


def whole_batches(graph: Graph, count: int) -> int:
    """`count` inputs; where a network takes only as many as its example held, whole batches of them, at least one."""
    return count if graph.batched else max(count - count % graph.batch, graph.batch)


def share_of(consumer: Consumer, graph: Graph, count: int) -> float:
    """The part of the patches of `count` inputs that `MACS` allows and that is not more than enough, in (0, 1]."""
    patches = patches_of(consumer, graph) * count
    allowed = max(MACS / (consumer.parts * consumer.width**2), LEAST_PATCHES_PER_ENTRY * consumer.width)
    enough = max(ENOUGH, ENOUGH_PER_ENTRY * consumer.width)
    return min(1.0, min(allowed, enough) / max(patches, 1))


def chunks(
    consumer: Consumer,
    x: Tensor,
    size: tuple[int, ...],
    values: tuple[Tensor, ...] = (),
    *,
    share: float,
    seed: int,
    parts: int | None = None,
) -> Iterator[Columns]:
    """Patches of an activation, in pieces of at most `CHUNK_VALUES` numbers, and the positions of `values`
    with them.

    Args:
        consumer: says how the patches lie.
        x: what enters the consumer, in the dense network or in a pruned one.
        size: the spatial size of its output (empty unless it is a convolution).
        values: tensors shaped as its output, with any number of channels.
        share: the part of the positions to take, in (0, 1].
        seed: of the choice of positions.
        parts: how many parts a plan leaves; those of the dense network when None.
    """
    groups = consumer.parts if parts is None else parts
    if consumer.geometry is None:
        yield _rows(groups, x, values, share, seed)
        return
    each = x.shape[1] * consumer.geometry.window * max(1.0, share * prod(size))
    step = max(1, int(CHUNK_VALUES // each))
    for first in range(0, len(x), step):
        piece = slice(first, first + step)
        taken = tuple(v[piece] for v in values)
        yield _windows(consumer.geometry, groups, x[piece], size, taken, share, seed + first)


def _rows(parts: int, x: Tensor, values: tuple[Tensor, ...], share: float, seed: int) -> Columns:
    def flat(tensor: Tensor) -> Tensor:
        if parts > 1:  # the leading axis holds the parts
            return tensor.transpose(1, 2)
        return tensor.reshape(1, -1, tensor.shape[-1]).transpose(1, 2)

    held = [flat(tensor) for tensor in (x, *values)]
    chosen = _choice(held[0].shape[-1], share, seed)
    if chosen is not None:
        held = [tensor[..., chosen] for tensor in held]
    return Columns(held[0], tuple(held[1:]))


def _windows(
    geometry: Geometry,
    groups: int,
    x: Tensor,
    size: tuple[int, ...],
    values: tuple[Tensor, ...],
    share: float,
    seed: int,
) -> Columns:
    if geometry.transposed:
        x, stride, padding = _spread_out(x, geometry, size)
    else:
        stride, padding = geometry.stride, geometry.padding
    wide = functional.pad(
        x.transpose(0, 1), [p for pad in reversed(padding) for p in (pad, pad)]
    ).contiguous()
    chosen = _choice(prod(size), share, seed)
    taken = [v.transpose(0, 1).reshape(groups, v.shape[1] // groups, v.shape[0], -1) for v in values]
    if chosen is None:
        patches = _all_windows(wide, geometry, stride, size)
    else:
        patches = _some_windows(wide, geometry, stride, size, chosen)
        taken = [v[..., chosen] for v in taken]
    return Columns(
        patches.reshape(groups, patches.shape[0] // groups * geometry.window, -1),
        tuple(v.reshape(groups, v.shape[1], -1) for v in taken),
    )


def _spread_out(
    x: Tensor, geometry: Geometry, size: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """The input of a transposed convolution as an ordinary one sees it: zeros between, and as many around."""
    gaps = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], geometry.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *gaps)
    spread: tuple[Any, ...] = (..., *(slice(None, None, s) for s in geometry.stride))
    wide[spread] = x
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel, strict=True)]
    before = [r - p for r, p in zip(reach, geometry.padding, strict=True)]
    after = [n + r - b - g for n, r, b, g in zip(size, reach, before, gaps, strict=True)]
    pads = [p for b, a in zip(reversed(before), reversed(after), strict=True) for p in (b, a)]
    ones = (1,) * len(size)
    return functional.pad(wide, pads), ones, (0,) * len(size)


def _all_windows(wide: Tensor, geometry: Geometry, stride: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """`[channels, *kernel, batch, *size]`, a view of `wide` `[channels, batch, *padded]`."""
    steps = wide.stride()
    inner = steps[2:]
    return wide.as_strided(
        (wide.shape[0], *geometry.kernel, wide.shape[1], *size),
        (
            steps[0],
            *(s * d for s, d in zip(inner, geometry.dilation, strict=True)),
            steps[1],
            *(s * t for s, t in zip(inner, stride, strict=True)),
        ),
    )


def _some_windows(
    wide: Tensor, geometry: Geometry, stride: tuple[int, ...], size: tuple[int, ...], chosen: Tensor
) -> Tensor:
    """`[channels, window, batch, n]` at the chosen positions of the output."""
    plane = torch.arange(prod(wide.shape[2:])).reshape(wide.shape[2:])
    ahead = plane.as_strided(
        (*geometry.kernel, *size),
        (
            *(s * d for s, d in zip(plane.stride(), geometry.dilation, strict=True)),
            *(s * t for s, t in zip(plane.stride(), stride, strict=True)),
        ),
    )
    where = ahead.reshape(geometry.window, -1)[:, chosen.cpu()].to(wide.device)
    gathered = wide.flatten(2)[:, :, where.flatten()]
    return gathered.reshape(*gathered.shape[:2], *where.shape).transpose(1, 2)


def _choice(count: int, share: float, seed: int) -> Tensor | None:
    """Some of `count` positions, sorted; None for all."""
    wanted = max(1, round(share * count))
    if wanted >= count:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:wanted].sort().values
