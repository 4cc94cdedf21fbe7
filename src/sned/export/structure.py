"""Example inputs and outputs of any structure: which tensors are in them, and what each may be called."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.export.parity import Array
from sned.graph.example import Inputs


def tensors(example: Any) -> list[Tensor]:
    """The tensors of example inputs, in the order in which the model is given them."""
    return [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]


def arrays(nest: Any) -> list[Array]:
    """The tensors of inputs or outputs as arrays, in order; NumPy has no bfloat16, and gets float32."""
    return [_known(tensor.detach().cpu().resolve_conj()).contiguous().numpy() for tensor in tensors(nest)]


def _known(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def batch_size(example: Inputs) -> int:
    """The size of the first axis of the first tensor that has one; 1 where all are scalars."""
    return next((tensor.shape[0] for tensor in tensors(example) if tensor.dim()), 1)


def batched(example: Inputs) -> tuple[bool, ...]:
    """Of each tensor whether its first axis is the batch: whether it is as long as that of the first one with axes."""
    size = batch_size(example)
    return tuple(tensor.dim() > 0 and tensor.shape[0] == size for tensor in tensors(example))


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
    rows = batch_size(inputs)
    for start in range(0, rows, size or rows):
        pick = torch.arange(start, start + (size or rows)) % rows
        yield with_batch(inputs, which, lambda tensor, pick=pick: tensor[pick])  # type: ignore[misc]


def fresh(example: Inputs, size: int, *, seed: int) -> Inputs:
    """Other inputs of the same kind at a batch of `size`.

    Real numbers are drawn from a normal distribution with the mean and spread of the example's, integers from
    the example's own values (an index stays in range), and rows of booleans are drawn whole.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        shape = (size, *tensor.shape[1:])
        if tensor.is_floating_point():
            spread = float(tensor.std(correction=0)) or 1.0
            noise = torch.randn(shape, generator=generator) * spread + float(tensor.mean())
            return noise.to(tensor.dtype)
        if tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            picks = torch.randint(tensor.numel(), shape, generator=generator)
            return tensor.flatten()[picks]
        return tensor[torch.randint(tensor.shape[0], (size,), generator=generator)]

    return with_batch(example, batched(example), draw)


@singledispatch
def named_tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Walk what a model returned: each tensor in it, with a name made of the keys that lead to it.

    Tensors, tuples, lists, mappings and dataclasses are entered; whatever else there is (None, numbers,
    caches) carries nothing that a file could return.
    """
    if is_dataclass(value):
        for field in fields(value):
            yield from named_tensors(getattr(value, field.name), _join(name, field.name))


@named_tensors.register
def _(value: Tensor, name: str = "") -> Iterator[tuple[str, Tensor]]:
    yield name or "output", value


@named_tensors.register(list)
@named_tensors.register(tuple)
def _(value: Sequence[object], name: str = "") -> Iterator[tuple[str, Tensor]]:
    keys = getattr(value, "_fields", None) or [str(place) for place in range(len(value))]
    for key, part in zip(keys, value, strict=True):
        yield from named_tensors(part, _join(name, key, otherwise=f"output_{key}"))


@named_tensors.register
def _(value: Mapping, name: str = "") -> Iterator[tuple[str, Tensor]]:  # type: ignore[type-arg]
    for key, part in value.items():
        yield from named_tensors(part, _join(name, str(key)))


def _join(name: str, key: str, *, otherwise: str = "") -> str:
    return f"{name}_{key}" if name else (otherwise if key.isdigit() and otherwise else key)
