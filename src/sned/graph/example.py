"""What example inputs look like: enough to trace again without them, on any batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sned.errors import ModelError

Inputs = Any
"""A tensor, a tuple or list of positional arguments, or a dict of keyword arguments; nested as the model takes it."""


ArgsAndKwargs = tuple[tuple[Any, ...], dict[str, Any]]
"""What a call is given: positions, and keywords."""


@dataclass(frozen=True)
class Leaf:
    """A tensor among the example inputs: its shape, its dtype, and the range of its values.

    The largest is told for each column (last axis), where columns may index tables of different sizes.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float | tuple[float, ...]

    def tensor(self, batch: int | None, old: int, generator: torch.Generator) -> torch.Tensor:
        """A random tensor like the one that this leaf describes, with another leading size."""
        shape = self.resized(batch, old)
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, generator=generator).to(dtype)
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        widths = torch.tensor(self.high, dtype=torch.float64) - self.low + 1
        return (self.low + drawn * widths).floor().to(dtype)

    def resized(self, batch: int | None, old: int) -> tuple[int, ...]:
        """The shape with the batch axis (the first one, where it has the example's batch size) set to `batch`."""
        return self.shape if batch is None or not self.batched(old) else (batch, *self.shape[1:])

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * dtype.itemsize

    def batched(self, old: int) -> bool:
        """Whether the first axis is that of the batch, which has the size `old` in the example."""
        return bool(self.shape) and self.shape[0] == old


@dataclass(frozen=True)
class Example:
    """Example inputs as plain data: a nest in which every tensor is a `Leaf`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int

    def leaves(self) -> list[Leaf]:
        """The tensors, in the order in which the graph numbers them."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Leaf)]

    def build(self, make: Callable[[Leaf], Any]) -> ArgsAndKwargs:
        """Positional and keyword arguments with every leaf made into something else, such as a tensor."""

        def filled(value: Any) -> Any:
            return make(value) if isinstance(value, Leaf) else value

        args, kwargs = pytree.tree_map(filled, (self.args, self.kwargs))
        return args, kwargs

    def first_row(self, inputs: ArgsAndKwargs) -> ArgsAndKwargs:
        """The first row of a batch of arguments; what has no batch axis stays whole."""
        given = iter(tensors_in(inputs))

        def first(leaf: Leaf) -> torch.Tensor:
            tensor = next(given)
            return tensor[:1] if leaf.batched(self.batch) else tensor

        return self.build(first)

    def random(self, batch: int | None = None, seed: int = 0, *, fixed: int | None = None) -> ArgsAndKwargs:
        """Random arguments of the given batch size (default: the example's own); those without a batch axis are drawn
        by a seed of their own, `fixed`, where it is given."""
        grows = torch.Generator().manual_seed(seed)
        stays = grows if fixed is None else torch.Generator().manual_seed(fixed)
        return self.build(
            lambda leaf: leaf.tensor(batch, self.batch, grows if leaf.batched(self.batch) else stays)
        )


def arguments(inputs: Inputs) -> ArgsAndKwargs:
    """Read example inputs as positional and keyword arguments: a dict gives keywords, a tuple or list positions."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def batch_in(inputs: Inputs) -> int:
    """How many inputs there are: rows of the first tensor that has axes, 1 where none has."""
    return next((tensor.shape[0] for tensor in tensors_in(inputs) if tensor.ndim), 1)


def copied(value: Any) -> Any:
    """The same nest with every tensor copied: networks may write into what they are given."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, value)


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """What a model returns for inputs, which stay as they are."""
    args, kwargs = copied(arguments(inputs))
    return model(*args, **kwargs)


def describe(inputs: Inputs) -> Example:
    """The `Example` of given inputs.

    Raises:
        ModelError: there is no tensor among them.
    """
    args, kwargs = arguments(inputs)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ModelError(
            f"`example_inputs` must hold at least one tensor, got {type(inputs).__name__}. "
            "Pass a tensor, a tuple of positional arguments, or a dict of keyword arguments."
        )
    if len(tensors_in((args, kwargs))) != len(tensors):
        raise ModelError(
            "`example_inputs` must hold their tensors in tuples, lists and dicts, but some are in an object of a class "
            "of its own. Wrap the model in a module that takes tensors and makes that object of them."
        )

    def leaf(value: Any) -> Any:
        return _leaf(value) if isinstance(value, torch.Tensor) else value

    described_args, described_kwargs = pytree.tree_map(leaf, (args, kwargs))
    return Example(described_args, described_kwargs, batch_in(tensors))


def _leaf(tensor: torch.Tensor) -> Leaf:
    low, high = _range(tensor)
    return Leaf(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), low, high)


def _range(tensor: torch.Tensor) -> tuple[float, float | tuple[float, ...]]:
    """The smallest integer, and the largest of each column: columns may index tables of different sizes."""
    if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel() or tensor.is_meta:
        return 0.0, 0.0
    low, high = float(tensor.min()), float(tensor.max())
    if tensor.ndim < 2 or high <= 1:
        return low, high
    return low, tuple(map(float, tensor.reshape(-1, tensor.shape[-1]).amax(0).cpu().tolist()))


def tensors_in(value: Any) -> Sequence[torch.Tensor]:
    """Every tensor of a nest, in the order of `named_tensors`."""
    return [tensor for _, tensor in named_tensors(value)]


def named_tensors(value: Any, name: str = "", *, inside: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested containers, in dataclasses, and among the attributes of any other object.

    Objects within such other objects (what is `inside`) are not looked into: a cache of keys and values that a language
    model returns beside its answers is made of them.

    Yields:
        A name made of the keys that lead to the tensor, and the tensor.
    """
    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif isinstance(value, tuple | list):
        for key, part in zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True):
            yield from named_tensors(
                part, f"{name or 'output'}_{key}" if key.isdigit() else _under(name, key), inside=inside
            )
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from named_tensors(part, _under(name, key), inside=inside)
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from named_tensors(getattr(value, key, None), _under(name, key), inside=inside)
    elif not inside and not isinstance(value, type | torch.nn.Module):
        slots = {key: getattr(value, key, None) for key in getattr(type(value), "__slots__", ())}
        yield from named_tensors({**getattr(value, "__dict__", {}), **slots}, name, inside=True)


def _under(name: str, key: object) -> str:
    return f"{name}_{key}" if name else str(key)
