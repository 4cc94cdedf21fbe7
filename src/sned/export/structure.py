"""Example inputs and outputs of any structure as arrays, and at other batch sizes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.export.parity import Array
from sned.graph.example import Inputs, batch_in, tensors_in


def arrays(nest: Any) -> list[Array]:
    """The tensors of inputs or outputs as arrays, in order; NumPy has no bfloat16, and gets float32."""
    return [_known(tensor.detach().cpu().resolve_conj()).contiguous().numpy() for tensor in tensors_in(nest)]


def _known(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def batched(example: Inputs) -> tuple[bool, ...]:
    """Of each tensor whether its first axis is the batch: whether it is as long as that of the first one with axes."""
    size = batch_in(example)
    return tuple(tensor.dim() > 0 and tensor.shape[0] == size for tensor in tensors_in(example))


def with_batch(inputs: Inputs, which: Sequence[bool], change: Callable[[Tensor], Tensor]) -> Inputs:
    """Put each tensor that has the batch axis, going by `which`, through `change`, and leave the others."""
    told = iter(which)
    changed: Inputs = pytree.tree_map_only(Tensor, lambda leaf: change(leaf) if next(told) else leaf, inputs)
    return changed


def at_batch(inputs: Inputs, size: int, which: Sequence[bool]) -> Inputs:
    """The same inputs at another batch size: rows are repeated, or left out."""
    return with_batch(inputs, which, lambda tensor: tensor[torch.arange(size) % tensor.shape[0]])


def in_parts(inputs: Inputs, size: int | None, which: Sequence[bool]) -> Iterator[Inputs]:
    """Inputs cut to batches of `size` (None: as they are); a short last part is filled up from the first rows.

    Args:
        which: of each tensor whether it has the batch axis. The example tells: a batch may be as long as a mask.
    """
    rows = batch_in(inputs)
    for start in range(0, rows, size or rows):
        pick = torch.arange(start, start + (size or rows)) % rows
        yield with_batch(inputs, which, lambda tensor, pick=pick: tensor[pick])  # type: ignore[misc]


def fresh(example: Inputs, size: int, *, seed: int) -> Inputs:
    """Other inputs of the same kind at a batch of `size`.

    Real numbers are drawn from a normal distribution with the mean and spread of the example's, integers from
    the example's own values up to the largest of their column (last axis: columns may index tables of different
    sizes); rows of booleans, or with infinity in them as masks have it, are drawn whole.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        shape = (size, *tensor.shape[1:])
        if tensor.is_floating_point() and bool(tensor.isfinite().all()):
            spread = float(tensor.std(correction=0)) or 1.0
            noise = torch.randn(shape, generator=generator) * spread + float(tensor.mean())
            return noise.to(tensor.dtype)
        if tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            picks = torch.randint(tensor.numel(), shape, generator=generator)
            drawn = tensor.flatten()[picks]
            return drawn if tensor.ndim < 2 else drawn.minimum(tensor.flatten(0, -2).amax(0))
        return tensor[torch.randint(tensor.shape[0], (size,), generator=generator)]

    return with_batch(example, batched(example), draw)
