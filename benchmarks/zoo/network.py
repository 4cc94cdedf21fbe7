"""What a network of the zoo is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """How a network is built, and what it is called with.

    Attributes:
        collection: the key of `COLLECTIONS` that it belongs to.
        name: as its library names it.
        build: makes it, with fresh random weights.
        example: random inputs of a batch size: a tensor, a tuple of arguments, or a dict of keywords.
        seconds: what the whole check may take.
    """

    collection: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Any]
    seconds: int = 240


def images(side: int, channels: int = 3) -> Callable[[int], torch.Tensor]:
    """Square random images `[batch, channels, side, side]`."""

    def example(batch: int) -> torch.Tensor:
        return torch.randn(batch, channels, side, side)

    return example
