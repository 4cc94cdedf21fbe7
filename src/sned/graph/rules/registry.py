"""The two tables: how labels flow through an op, and how its size arguments change when units leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sned.graph.flow import Rule
from sned.graph.ir import Op

if TYPE_CHECKING:
    from sned.graph.sizes import Sizes

Arguments = tuple[Any, ...]
Resizer = Callable[["Sizes", Op, Arguments], Arguments]
"""(new sizes, the op, its arguments with the batch size filled in) -> its arguments after pruning."""

RULES: dict[str, Rule] = {}
RESIZERS: dict[str, Resizer] = {}

FREEZING = frozenset({"histc", "bincount", "unique_dim", "_unique2", "nonzero", "masked_select"})
"""Ops without a rule on purpose: they count or choose by value, so that whatever they touch stays."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how labels flow through the ops of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def resize(*names: str) -> Callable[[Resizer], Resizer]:
    """Register how the size arguments of these ops follow a plan."""

    def register(function: Resizer) -> Resizer:
        RESIZERS.update(dict.fromkeys(names, function))
        return function

    return register


def argument(op: Op, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or keyword."""
    return op.args[position] if len(op.args) > position else op.kwargs.get(name, default)
