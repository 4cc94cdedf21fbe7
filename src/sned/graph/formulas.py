"""Numbers that remember how they follow from the attribute or the axis that supplied them, through arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple


class Attribute(NamedTuple):
    """An integer in an attribute: of a module, of an object that the module holds, or inside a tuple or list."""

    module: str
    name: str
    holder: str | None = None
    item: int | None = None


class TensorAxis(NamedTuple):
    """The size of an axis of a recorded tensor."""

    tensor: int
    axis: int


Source = Attribute | TensorAxis


class Formula(NamedTuple):
    """A number as a function of its sources: one source with its old value, or an operation on operands."""

    sources: frozenset[Source]
    value: int = 0
    operation: str = ""
    operands: tuple[Formula | int | float, ...] = ()

    def evaluate(self, news: Mapping[Source, int]) -> Any:
        """The number when sources take new values; those not given keep their old one."""
        if not self.operation:
            (source,) = self.sources
            return news.get(source, self.value)
        values = [o.evaluate(news) if isinstance(o, Formula) else o for o in self.operands]
        return OPERATIONS[self.operation](*values)

    def old(self, source: Source) -> int:
        """The old value of one of its sources."""
        if not self.operation:
            return self.value
        inner = (operand for operand in self.operands if isinstance(operand, Formula))
        return next(formula.old(source) for formula in inner if source in formula.sources)

    def over(self, same: Mapping[Source, Source]) -> Formula:
        """The same number as a function of sources that always equal its own."""
        operands = tuple(o.over(same) if isinstance(o, Formula) else o for o in self.operands)
        sources = frozenset(same.get(source, source) for source in self.sources)
        return Formula(sources, self.value, self.operation, operands)


class Sized(int):
    """An integer that remembers the formula that it came from."""

    formula: Formula
    compared: ClassVar[Callable[[Sized, Sized], None] | None] = None
    """Told of pairs found equal: `assert x.shape[-1] == self.width` asks as much of an attribute as a `view` does."""

    def __new__(cls, value: int, formula: Formula) -> Sized:
        made = super().__new__(cls, value)
        made.formula = formula
        return made

    @staticmethod
    def of(value: int, source: Source) -> Sized:
        """A number straight from its source."""
        return Sized(value, Formula(frozenset([source]), value))

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other)
        if Sized.compared is not None and isinstance(other, Sized) and same:
            Sized.compared(self, other)
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __deepcopy__(self, _: dict[int, object]) -> Sized:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class SizedFloat(float):
    """A float that was worked out from a `Sized`, such as `head_dim ** -0.5`."""

    formula: Formula

    def __new__(cls, value: float, formula: Formula) -> SizedFloat:
        made = super().__new__(cls, value)
        made.formula = formula
        return made

    def __deepcopy__(self, _: dict[int, object]) -> SizedFloat:
        return self

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


def _with_formula(value: Any, operation: str, operands: Sequence[Any]) -> Any:
    """A result that remembers how it came from its operands."""
    held = tuple(getattr(operand, "formula", None) or _plain(operand) for operand in operands)
    sources = frozenset[Source]().union(*(o.sources for o in held if isinstance(o, Formula)))
    made = Formula(sources, operation=operation, operands=held)
    if isinstance(value, int) and not isinstance(value, bool):
        return Sized(value, made)
    return SizedFloat(value, made) if isinstance(value, float) else value


def _plain(value: int | float) -> int | float:
    return int(value) if isinstance(value, int) else float(value)


def _arithmetic(name: str, *, swapped: bool) -> Callable[[Any, Any], Any]:
    compute = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        pair = (other, self) if swapped else (self, other)
        return _with_formula(compute(_plain(pair[0]), _plain(pair[1])), name, pair)

    return method


plain_sqrt = math.sqrt
_ARITHMETIC = ("add", "sub", "mul", "floordiv", "mod", "pow", "truediv")
OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "sqrt": plain_sqrt,
    "float": float,
    "int": int,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    **{name: getattr(operator, name) for name in _ARITHMETIC},
}
"""What a formula may do with its operands."""

for _operation in _ARITHMETIC:
    for _kind in (Sized, SizedFloat):
        setattr(_kind, f"__{_operation}__", _arithmetic(_operation, swapped=False))
        setattr(_kind, f"__r{_operation}__", _arithmetic(_operation, swapped=True))


def _rounding(name: str) -> Callable[[Any], Any]:
    compute = OPERATIONS[name]

    def method(self: Any) -> Any:
        return _with_formula(compute(_plain(self)), name, (self,))

    return method


for _operation in ("floor", "ceil", "round"):
    setattr(SizedFloat, f"__{_operation}__", _rounding(_operation))


def _opened(kind: type) -> Any:
    """Stands for `int` or `float` in code that converts sizes: they keep their formula."""

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, kind)

        def __eq__(cls, other: object) -> bool:  # as a dtype, and as what `type` returns
            return other is cls or other is kind

        def __hash__(cls) -> int:
            return hash(kind)

    class Opened(metaclass=Kind):
        def __new__(cls, *given: Any) -> Any:
            plain = kind(*given)
            known = len(given) == 1 and isinstance(given[0], Sized | SizedFloat)
            return _with_formula(plain, kind.__name__, given) if known else plain

    return Opened


OPENED: Mapping[str, Any] = {kind.__name__: _opened(kind) for kind in (int, float)}
"""What stands for `int` and `float` in code that derives widths and factors from sizes."""


def opened_sqrt(value: Any) -> Any:
    """Stands for `math.sqrt` likewise."""
    root = plain_sqrt(value)
    return _with_formula(root, "sqrt", (value,)) if isinstance(value, Sized | SizedFloat) else root
