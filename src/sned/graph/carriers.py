"""Factors that code makes a tensor of before it multiplies by them, as in `x * torch.tensor(width**-0.5)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sned.graph.ir import leaves


class Carriers:
    """Tensors that hold one number each, which remembers where it comes from."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[torch.Tensor, Any]] = {}

    def carry(self, tensor: torch.Tensor, number: Any) -> None:
        """Let a tensor stand for a number."""
        self._held[id(tensor)] = (tensor, number)  # held, so that no other one gets its identity

    def among(self, args: Any, kwargs: Mapping[str, Any] | None) -> list[Any]:
        """The numbers that tensors among the arguments of a call stand for."""
        if not self._held:
            return []
        given = leaves((args, tuple((kwargs or {}).values())), torch.Tensor)
        return [self._held[id(tensor)][1] for tensor in given if id(tensor) in self._held]

    def factor(self, name: str, args: Any) -> torch.Tensor | None:
        """The tensor that a product or a quotient multiplies one other tensor by, where it stands for a number."""
        if len(args) != 2 or not all(isinstance(arg, torch.Tensor) for arg in args):
            return None
        first, second = (id(arg) in self._held for arg in args)
        if second and not first:
            return args[1]  # type: ignore[no-any-return]
        return args[0] if first and not second and "mul" in name else None
