"""Statistics that leave out positions that are zero everywhere: what removal makes of a mean, a maximum, a softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


def left(x: Tensor, dim: int | Sequence[int]) -> Tensor:
    """1 where a position along `dim` holds anything, over all other axes; broadcasts against `x`."""
    axes = {d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)}
    others = [a for a in range(x.ndim) if a not in axes]
    return (x != 0).to(x.dtype).amax(others, keepdim=True) if others else (x != 0).to(x.dtype)


@contextmanager
def statistics_of_what_is_left() -> Iterator[None]:
    """Patch `mean`, `amax` and `softmax` of tensors so that they do not see what was set to zero."""
    plain: dict[str, Callable[..., Tensor]] = {
        name: getattr(Tensor, name) for name in ("mean", "amax", "softmax")
    }

    def mean(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
        present = left(x, dim)
        return x.sum(dim, keepdim) / present.expand_as(x).sum(dim, keepdim).clamp(min=1)

    def amax(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        with mock.patch.object(Tensor, "amax", plain["amax"]):
            hidden = x.masked_fill(left(x, dim) == 0, -torch.inf)
            return hidden.amax(dim, keepdim)

    def softmax(x: Tensor, dim: int) -> Tensor:
        with mock.patch.object(Tensor, "amax", plain["amax"]):
            hidden = x.masked_fill(left(x, dim) == 0, -torch.inf)
            return plain["softmax"](hidden, dim)

    with ExitStack() as stack:
        for function in (mean, amax, softmax):
            stack.enter_context(mock.patch.object(Tensor, function.__name__, function))
        yield
