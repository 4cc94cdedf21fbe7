"""What elementwise ops make of zeros: it tells whether a sum behind them notices that channels go."""

from __future__ import annotations

from enum import Enum

from sned.graph.ir import Op, Ref


class Zero(Enum):
    """When the result of an elementwise op is zero: where a factor is, where what is divided is, where every operand
    is, or not even there."""

    FACTOR = "product"
    DIVIDED = "quotient"
    EVERY = "sum"
    NEVER = "lifted"


PRODUCTS = frozenset({"mul", "multiply"})
QUOTIENTS = frozenset({"div", "divide", "true_divide"})
KEEPING = frozenset({
    "abs", "addcdiv", "addcmul", "alias", "asin", "asinh", "atan", "atanh", "ceil", "celu", "clone",
    "contiguous", "copy", "detach", "dropout", "elu", "erf", "expm1", "floor", "gelu", "hardshrink",
    "hardswish", "leaky_relu", "lerp", "lift_fresh", "lift_fresh_copy", "log1p", "maximum", "minimum", "mish",
    "nan_to_num", "native_dropout", "neg", "positive", "prelu", "_prelu_kernel", "relu", "relu6",
    "resolve_conj", "round", "selu", "sgn", "sign", "silu", "sin", "sinh", "softshrink", "sqrt", "square",
    "tan", "tanh", "_to_copy", "trunc", "zero", "_conj", "_neg_view", "view_as_real_copy",
})  # fmt: skip
"""Ops that give zero where every tensor they are given is zero, whatever numbers they take."""


def zero(op: Op) -> Zero:
    """When the result of an elementwise op is zero; `NEVER` for one that is not known here."""
    name = op.name.removesuffix("_")  # in place or not
    if name in PRODUCTS:
        return Zero.FACTOR
    if name in QUOTIENTS:
        return Zero.DIVIDED
    return Zero.EVERY if _keeps(name, op) else Zero.NEVER


def _keeps(name: str, op: Op) -> bool:
    numbers = [value for value in op.args[1:] if not isinstance(value, Ref)]
    if name in ("clamp", "hardtanh"):
        low, high = ([*numbers, *(op.kwargs.get(key) for key in ("min", "max"))] + [None] * 2)[:2]
        return (low is None or low <= 0) and (high is None or high >= 0)
    if name == "pow":
        return bool(numbers) and isinstance(numbers[0], int | float) and numbers[0] > 0
    if name in ("add", "sub", "masked_fill", "where"):
        return not any(numbers)
    return name in KEEPING
