"""What a forward pass leaves in a network, and how it is taken back."""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import cache
from typing import Any

from torch import nn

from sned.graph.modules import modules_of


class Untouched:
    """Takes back what a forward pass sets, adds or hooks on: a table kept for the next time would be a meta tensor.

    A context for one pass after another: each begins with the model as it was when this was made.
    """

    def __init__(self, model: nn.Module) -> None:
        self._full, self._empty = _changeable(model)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for kind, held, was in self._full:
            kind.clear(held)
            (kind.extend if kind in (list, deque) else kind.update)(held, was)
        for held in self._empty:
            if held:
                held.clear()


def _changeable(model: nn.Module) -> tuple[list[tuple[Any, Any, Any]], list[Any]]:
    """The attributes of modules and of plain objects in them, and every table, list and set, with what is in them now:
    (kind, the thing itself, its contents). Those that are empty, as most tables of a module are, come apart."""
    full: list[tuple[Any, Any, Any]] = []
    empty: list[Any] = []
    met: set[int] = set()
    waiting: list[Any] = [vars(module) for _, module in modules_of(model)]
    for value in waiting:  # which grows as it goes
        if type(value) in _CONTAINERS and not value:
            empty.append(value)
            continue
        if id(value) in met:
            continue
        met.add(id(value))
        kind = _growing(value.__class__)
        if kind is None:
            inside = value if type(value) is tuple else (vars(value),)
        else:
            was: Any = dict(value) if issubclass(kind, dict) else list(value)
            full.append((kind, value, was))
            inside = was.values() if issubclass(kind, dict) else was
        waiting += [held for held in inside if _holds(held.__class__)]
    return full, empty


@cache
def _growing(kind: Any) -> Any:
    """The container of Python's own that a class is, or follows; hooks are kept in such."""
    return next((base for base in kind.__mro__ if base in _CONTAINERS), None)


@cache
def _holds(kind: Any) -> bool:
    """Whether values of a class may hold what a pass changes: containers, and objects that are the user's alone."""
    if kind is tuple or _growing(kind) is not None:
        return True
    owners = {base.__module__.partition(".")[0] for base in kind.__mro__[:-1]}
    return kind.__dictoffset__ != 0 and owners.isdisjoint(_FRAMEWORKS)


_CONTAINERS = frozenset({OrderedDict, dict, list, set, deque})

_FRAMEWORKS = frozenset({"builtins", "torch", "numpy", "keras", "tensorflow", "jax"})
"""Whose objects are left alone: tensors, modules, functions, and what frameworks keep for themselves."""
