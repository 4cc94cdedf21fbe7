"""Values beside tensors that have none: what a pass makes of whole numbers alone is computed after all.

Models ask questions of their masks and positions (`.item()`, `.all()`, `nonzero`). Such tensors are small and hold no
weights, so they are followed on the CPU while everything else is recorded on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sned.graph.ir import leaves

LIMIT = 1 << 20
"""Elements of the largest tensor that is followed."""

ASKS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


class Values:
    """The values of some meta tensors, by identity; the tensors must outlive this."""

    def __init__(self) -> None:
        self._held: dict[int, torch.Tensor] = {}

    def hold(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Follow `tensor`, which has no values, with these."""
        if tensor.is_meta and not value.is_meta and value.numel() <= LIMIT:
            self._held[id(tensor)] = value

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with its values, where they are known (as they are now), else itself."""
        value = self._held.get(id(tensor))
        return tensor if value is None else value.clone()

    def answers(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether the op asks for values, and they are known."""
        if not _asks(func):
            return False
        given = _tensors(args)
        return bool(given) and all(id(t) in self._held for t in given)

    def answer(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the op gives on the values: numbers as they are, tensors as followed ones."""
        return pytree.tree_map(self._without, self._run(func, args, kwargs))

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Do to the values what `func`, which made `result`, did to the tensors; or forget those that it wrote to.

        Raises:
            IndexError: it indexed with values that are known and out of range, which it does not see itself.
        """
        for sizes, index in _indexed(func, args):
            self._check_range(index, sizes)
        if args and isinstance(args[0], torch.Tensor) and id(args[0]) not in self._held and not _writes(func):
            return  # nearly always
        arguments = (args, tuple(kwargs.values()))
        held = all(id(t) in self._held for t in _tensors(arguments))
        if held and self._followed(func, _tensors(arguments), _tensors(result)):
            for tensor, value in zip(_tensors(result), _tensors(self._run(func, args, kwargs)), strict=True):
                self._held[id(tensor)] = value
        elif _writes(func):
            for argument, value in zip(func._schema.arguments, args, strict=False):
                for tensor in _tensors(value) if argument.is_write else ():
                    self._forget(tensor)

    @staticmethod
    def _followed(func: Any, given: list[torch.Tensor], made: list[torch.Tensor]) -> bool:
        """Whether results are small, and not random.

        What is made of nothing is left alone if it is empty, or made of floats (masks can be large).
        """
        plain = bool(given) or all(t.numel() and not t.is_floating_point() for t in made)
        small = all(t.is_meta and t.numel() <= LIMIT for t in made)
        return bool(made) and plain and small and torch.Tag.nondeterministic_seeded not in func.tags

    def _check_range(self, index: torch.Tensor, sizes: torch.Size) -> None:
        value = self._held.get(id(index), index)
        if index.dtype == torch.bool:
            fits = index.shape == sizes
        else:
            fits = value.is_meta or bool(((value >= -sizes[0]) & (value < sizes[0])).all())
        if not fits:
            raise IndexError(
                f"An index of shape {[*index.shape]} is out of range of axes of size {[*sizes]}."
            )

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        named = {name: torch.device("cpu") if name == "device" else value for name, value in kwargs.items()}
        values, by_name = pytree.tree_map(self._with, (args, named))
        return func(*values, **by_name)

    def _with(self, value: Any) -> Any:
        return self._held[id(value)] if isinstance(value, torch.Tensor) else value

    def _without(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        tensor = value.to("meta")
        self._held[id(tensor)] = value
        return tensor

    def _forget(self, tensor: torch.Tensor) -> None:
        """Whatever shares memory with a value that was written to with unknown ones is unknown too."""
        gone = self._held.get(id(tensor))
        if gone is not None:
            place = gone.untyped_storage().data_ptr()
            self._held = {i: v for i, v in self._held.items() if v.untyped_storage().data_ptr() != place}


@cache
def _asks(func: Any) -> bool:
    return not ASKS.isdisjoint(func.tags)


@cache
def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


@cache
def _indexes(func: Any) -> str:
    """Whether the op looks up or writes "at" indices of several axes, or "along" one axis; "" for neither."""
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    along = ("index_", "gather", "scatter")
    return "at" if name in ("index", "index_put") else "along" if name.startswith(along) else ""


def _indexed(func: Any, args: tuple[Any, ...]) -> Iterator[tuple[torch.Size, torch.Tensor]]:
    """The indices that an op takes, with the sizes of the axes of each: of a mask several."""
    kind = _indexes(func)
    if kind == "along" and args[0].ndim:
        yield torch.Size([args[0].shape[args[1]]]), args[2]
    axis = 0
    for index in args[1] if kind == "at" else ():
        width = index.ndim if index is not None and index.dtype == torch.bool else 1
        if index is not None:
            yield args[0].shape[axis : axis + width], index
        axis += width


def _tensors(value: Any) -> list[torch.Tensor]:
    return leaves(value, torch.Tensor)
