"""Inputs that matching draws at random: images shifted and mirrored, since both networks see the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.graph.example import Example, Leaf, arguments

COARSE = (torch.float16, torch.bfloat16)
"""Kinds of numbers in which small steps of weights vanish."""

SMALLEST_IMAGE = 16
"""Floating-point inputs of four axes, the last two or the middle two at least this long, are taken for images."""


class Drawn:
    """All inputs as one batch, to draw from; what has no batch axis is there once.

    Args:
        example: says which tensors have one.
        batches: as the model takes them, at least one.
        coarse: make single precision of less.
    """

    def __init__(self, example: Example, batches: Sequence[Any], *, coarse: bool) -> None:
        def together(grows: bool, *values: Any) -> Any:
            value = torch.cat(values) if grows else values[0]
            return value.float() if coarse and isinstance(value, Tensor) and value.dtype in COARSE else value

        def batched(leaf: Any) -> bool:
            return isinstance(leaf, Leaf) and leaf.batched(example.batch)

        self._grows = pytree.tree_map(batched, (example.args, example.kwargs))
        self._all = pytree.tree_map(together, self._grows, *map(arguments, batches))

    @property
    def count(self) -> int:
        """How many there are."""
        pairs = zip(pytree.tree_leaves(self._grows), pytree.tree_leaves(self._all), strict=True)
        return next(len(value) for grows, value in pairs if grows)

    def at(self, rows: Tensor, change: Callable[[Tensor], Tensor] = lambda value: value) -> Any:
        """Some of them as the model takes them, changed."""
        args, kwargs = pytree.tree_map(
            lambda grows, value: change(value[rows]) if grows else value, self._grows, self._all
        )
        return kwargs if kwargs and not args else args

    def drawn(self, among: Tensor, count: int, generator: torch.Generator) -> Any:
        """`count` at random, images varied."""
        rows = among[torch.randint(len(among), (count,), generator=generator)]
        return self.at(rows, lambda value: _if_images(value, generator))


def _if_images(value: Any, generator: torch.Generator) -> Any:
    if _is_images(value):
        return _varied(value, generator)
    if isinstance(value, Tensor) and value.ndim == 4 and _is_images(first := value.permute(0, 3, 1, 2)):
        return _varied(first, generator).permute(0, 2, 3, 1)  # channels last, as in Keras
    return value


def _is_images(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 4
        and min(value.shape[2:]) >= SMALLEST_IMAGE
    )


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to an eighth, and every other one mirrored; the dense network says what they are."""
    height, width = images.shape[2:]
    far = (height // 8, width // 8)
    padded = torch.nn.functional.pad(images, (far[1], far[1], far[0], far[0]))
    down, right = (torch.randint(2 * f + 1, (len(images),), generator=generator).tolist() for f in far)
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    parts = [
        padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(down, right, strict=True))
    ]
    return torch.stack([part.flip(-1) if flip else part for part, flip in zip(parts, mirrored, strict=True)])
