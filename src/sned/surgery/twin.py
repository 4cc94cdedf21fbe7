"""A deep copy of a network that takes other tensors along."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from sned.errors import ModelError
from sned.graph.modules import modules_of
from sned.graph.trace import state_of


def twin(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A deep copy with other tensors in the place of its parameters and buffers, by their first names.

    Tied parameters stay tied, frozen ones stay frozen, and the old values are not copied.

    Raises:
        ModelError: the model cannot be copied.
    """
    memo: dict[int, Any] = detached(model)
    for name, old in state_of(model).items():
        if id(old) not in memo:
            new = tensors[name]
            memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    modules = [module for _, module in modules_of(model)]
    plain = {kind for kind in set(map(type, modules)) if _plain(kind)}
    copies: list[tuple[Any, Any]] = [
        (module, object.__new__(type(module))) for module in modules if type(module) in plain
    ]
    memo.update((id(module), small) for module, small in copies)
    try:
        for module, small in reversed(copies):  # from inside out: a wrapper asks what it holds for its mode
            held = vars(small)
            for name, value in vars(module).items():
                kind = type(value)
                if kind in _ATOMS:
                    held[name] = value
                elif kind in _TABLES and not value and id(value) not in memo:
                    held[name] = memo[id(value)] = kind()  # most of the rest: tables of hooks without a hook
                elif name != _COMPILED:
                    held[name] = _copied(value, memo)
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"The model is pruned on a copy, but copying {type(model).__name__} failed: {error}. "
            "Make it work with `copy.deepcopy` (detach tensors that are kept as plain attributes)."
        ) from error


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; tensors that a pass left on modules, as the older weight norm does, are copied by value."""
    return copy.deepcopy(model, detached(model))


def detached(model: nn.Module) -> dict[int, Any]:
    """What stands in a copy for tensors that a pass left on modules, as the older weight norm does, by identity: they
    would not be copied."""
    left = [
        value
        for _, module in modules_of(model)
        for value in vars(module).values()
        if type(value) not in _COMMON and isinstance(value, torch.Tensor) and value.grad_fn is not None
    ]
    return {id(tensor): tensor.detach().clone() for tensor in left}


def _plain(kind: type[nn.Module]) -> bool:
    """Whether modules of a class are copied as PyTorch's own are, attribute by attribute."""
    own = all(getattr(kind, name, None) == getattr(nn.Module, name, None) for name in _COPYING)
    return own and kind.__setstate__ in (nn.Module.__setstate__, _ConvNd.__setstate__)


_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__new__", "__slots__")
"""What a class may define to be copied in its own way; what convolutions set is for old files."""

_COMPILED = "_compiled_call_impl"
"""Where `model.compile()` keeps what it made of the old weights; PyTorch leaves it out of copies as well."""

_TABLES = (dict, OrderedDict, set)
_ATOMS = frozenset({bool, int, float, str, type(None)})
_COMMON = _ATOMS.union(_TABLES)
"""What nearly all that modules hold is."""


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, without its detours for what modules hold by the dozen: flags, sizes, tables by name."""
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and all(type(item) in _ATOMS for item in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _TABLES and all(type(key) in _ATOMS for key in value):
        table = memo[id(value)] = kind()
        if value:
            table.update(value if kind is set else ((k, _copied(v, memo)) for k, v in value.items()))
        return table
    return copy.deepcopy(value, memo)
