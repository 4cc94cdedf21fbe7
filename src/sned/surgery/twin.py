"""A deep copy of a network that takes other tensors along."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from sned.errors import ModelError
from sned.graph.trace import state_of


def twin(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A deep copy with other tensors in the place of its parameters and buffers, by their first names.

    Tied parameters stay tied, frozen ones stay frozen, and the old values are not copied.

    Raises:
        ModelError: the model cannot be copied.
    """
    memo: dict[int, object] = {}
    for name, old in state_of(model).items():
        if id(old) not in memo:
            new = tensors[name]
            memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"The model is pruned on a copy, but copying {type(model).__name__} failed: {error}. "
            "Make it work with `copy.deepcopy` (detach tensors that are kept as plain attributes)."
        ) from error
