"""Where the numbers in a forward pass come from.

While a pass is recorded, sizes of tensors (and, where asked, integers in attributes of modules) are handed out as
`Sized`: an `int` that carries its formula through arithmetic (`formulas`). Where one arrives in a call of PyTorch, the
ops that the call made are known, and so what that number must become when units leave.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sned.graph.carriers import Carriers
from sned.graph.formulas import (
    OPENED,
    Attribute,
    Formula,
    Sized,
    SizedFloat,
    TensorAxis,
    opened_sqrt,
    plain_sqrt,
)
from sned.graph.ir import leaves
from sned.graph.modules import modules_of

SHAPED = frozenset({"view", "reshape", "expand", "zeros", "ones", "full", "empty", "new_zeros", "new_ones",
                    "new_full", "new_empty", "broadcast_to", "layer_norm", "rms_norm"})  # fmt: skip
"""Functions whose integers are, in order, the last sizes of what they return."""


class Use(NamedTuple):
    """A formula that arrived in a call, or was compared with a number.

    Attributes:
        formula: where the number came from.
        value: what it was.
        first_op, last_op: range of the ops that the call made (empty for a comparison).
        from_end: its place among the integers of a shape, counted from the end; None elsewhere.
        equals: what it was found equal to, in a comparison.
        given: all the integers of the call, in order.
        place: where among them it stood.
        at: the axis (tensor, axis) that was made in that size, where the number was not given to a recorded call.
    """

    formula: Formula
    value: int
    first_op: int
    last_op: int
    from_end: int | None
    equals: Formula | None = None
    given: tuple[int, ...] = ()
    place: int = 0
    at: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scale:
    """A factor that was worked out from sizes and arrived in a call: its old value, the ops that the call made, and the
    tensor that holds it, if one does."""

    formula: Formula
    value: float
    first_op: int
    last_op: int
    tensor: int | None = None


@dataclass
class Watch(TorchFunctionMode):
    """Hands out sizes of tensors as `Sized`, and notes every `Sized` that arrives in a call.

    Args:
        position: tells how many ops were recorded so far.
        number: tells the number of a tensor, or None for one not met yet.
        hold: told of tensors without values that were made from written ones, and of those values.
        sources: whether sizes are handed out as `Sized` at all.
        dropout: whether it drops anything; the sizes of what it draws do not say where they come from.
    """

    position: Callable[[], int]
    number: Callable[[torch.Tensor], int | None]
    hold: Callable[[torch.Tensor, torch.Tensor], None]
    sources: bool = True
    dropout: bool = True
    uses: list[Use] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    leaks: list[Formula] = field(default_factory=list)
    carriers: Carriers = field(default_factory=Carriers)

    def __post_init__(self) -> None:
        super().__init__()

    def __enter__(self) -> Watch:
        Sized.compared = self._compared
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *problem: Any) -> None:
        Sized.compared = None
        super().__exit__(*problem)  # type: ignore[no-untyped-call]

    def _compared(self, one: Sized, other: Sized) -> None:
        if not any(isinstance(source, Attribute) for source in one.formula.sources | other.formula.sources):
            return  # nothing that could be repaired
        now = self.position()
        self.uses.append(Use(one.formula, int(one), now, now, None, equals=other.formula))
        self.uses.append(Use(other.formula, int(other), now, now, None, equals=one.formula))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.position()
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _tensor_of_list(args[1]), *args[2:])
        if not self.dropout and name.rstrip("_") in DROPOUTS:
            args, kwargs = (*(*args, *(kwargs or {}).values())[:2], False), None
        if name == "unflatten" and args and (shape := _unflattened(*args, **(kwargs or {}))) is not None:
            func, name, args, kwargs = torch.Tensor.view, "view", (args[0], shape), None
        carried = [] if name == "__get__" else self.carriers.among(args, kwargs)
        factor = self.carriers.factor(name, args) if carried and name.strip("_") in FACTORS else None
        result = func(*args, **(kwargs or {}))
        if factor is not None:
            number = self.number(factor)
            self.scales.append(Scale(carried[0].formula, float(carried[0]), start, self.position(), number))
        elif name == "to" and carried:
            self.carriers.carry(result, carried[0])
        else:
            self.leaks += [number.formula for number in carried]
        if name in ("tensor", "as_tensor") and not isinstance(args[0], torch.Tensor):
            if isinstance(args[0], SizedFloat):
                self.carriers.carry(result, args[0])
            else:
                held = (*_integers(args), *leaves(args, SizedFloat))
                self.leaks += [v.formula for v in held if isinstance(v, Sized | SizedFloat)]
            if result.is_meta:
                self.hold(result, func(*args, **{**(kwargs or {}), "device": "cpu"}))
        if not self.sources:
            return result
        if name in ("__get__", "size"):
            return self._with_sources(args[0], result, args[1:] or tuple((kwargs or {}).values()))
        if name in ("numel", "nelement"):
            sizes = self._with_sources(args[0], args[0].shape, ())
            return math.prod(sizes[1:], start=sizes[0]) if sizes else result
        self._scales(name, args, kwargs or {}, start)
        numbers = list(_integers((args, tuple((kwargs or {}).values()))))
        if any(isinstance(v, Sized) for v in numbers) and self.position() > start:
            given, end = tuple(map(int, numbers)), self.position()
            for place, value in enumerate(numbers):
                if isinstance(value, Sized):
                    from_end = len(numbers) - place if name in SHAPED else None
                    use = Use(value.formula, int(value), start, end, from_end, given=given, place=place)
                    self.uses.append(use)
        return result

    def _scales(self, name: str, args: Any, kwargs: Mapping[str, Any], start: int) -> None:
        """Note factors that follow from a size: floats given, and what attention uses when it is given none."""
        end = self.position()
        given = args, tuple(kwargs.values())
        factors = leaves(given, SizedFloat)
        if name.strip("_") in FACTORS:
            factors += [number for number in _integers(given) if isinstance(number, Sized)]
        for value in factors:
            self.scales.append(Scale(value.formula, float(value), start, end))
        if name == "scaled_dot_product_attention" and isinstance(kwargs.get("scale"), SizedFloat):
            root = kwargs["scale"] ** 0.5  # of which the query and the key get one each
            self.scales.append(Scale(root.formula, float(root), start, end))
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None and len(args) < 7:
            query = args[0] if args else kwargs["query"]
            number = self.number(query)
            if number is not None:
                size = Sized.of(int(query.size(-1)), TensorAxis(number, query.ndim - 1))
                for root in (size**-0.5, size**-0.25):
                    self.scales.append(Scale(root.formula, float(root), start, end))

    def _with_sources(self, tensor: torch.Tensor, result: Any, args: tuple[Any, ...]) -> Any:
        if not isinstance(result, torch.Size) and type(result) is not int:
            return result
        number = self.number(tensor)
        if number is None:
            return result
        if isinstance(result, torch.Size):
            return torch.Size([Sized.of(size, TensorAxis(number, axis)) for axis, size in enumerate(result)])
        axis = args[0] if args and isinstance(args[0], int) else None
        return result if axis is None else Sized.of(result, TensorAxis(number, int(axis) % tensor.ndim))


DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
"""Functions, without a last underscore, of a tensor, a share, and whether it is dropped."""

FACTORS = frozenset(
    {"mul", "rmul", "imul", "multiply", "div", "truediv", "itruediv", "true_divide", "divide"}
)
"""Functions, without underscores, whose whole numbers are factors, as floats are everywhere."""


def _unflattened(tensor: torch.Tensor, dim: int | str, sizes: Any) -> tuple[int, ...] | None:
    """The shape of the view that takes an axis apart, a size that is left open among them; None of one with a name."""
    if isinstance(dim, str):
        return None
    axis = dim % tensor.ndim
    return (*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def _tensor_of_list(index: Any) -> Any:
    """Lists in an index as tensors: on the device of a tensor without values, theirs would be lost."""
    if isinstance(index, list) and any(
        item is None or item is ... or isinstance(item, _AXES) for item in index
    ):
        index = tuple(index)  # as PyTorch takes a list that holds more than numbers
    if isinstance(index, tuple):
        return tuple(torch.tensor(item) if isinstance(item, list) else item for item in index)
    return torch.tensor(index) if isinstance(index, list) else index


_AXES = (slice, list, tuple, torch.Tensor)
"""What stands for an axis of its own in a list that is an index."""


def _integers(value: Any) -> Iterator[int]:
    for item in leaves(value):
        if isinstance(item, slice):
            yield from _integers((item.start, item.stop, item.step))
        elif isinstance(item, int) and not isinstance(item, bool):
            yield item


@contextmanager
def functions_opened() -> Iterator[None]:
    """Let a function mode see inside PyTorch's functions that are written in Python, and through root and float."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    patched = [
        (module, name, getattr(module, name))
        for module in (torch.nn.functional, torch.functional, torch._tensor)
        for name in checks
        if hasattr(module, name)
    ]
    try:
        for module, name, _ in patched:
            setattr(module, name, lambda *_: False)
        math.sqrt = opened_sqrt
        vars(torch.nn.functional)["float"] = OPENED["float"]
        yield
    finally:
        for module, name, original in patched:
            setattr(module, name, original)
        math.sqrt = plain_sqrt
        del vars(torch.nn.functional)["float"]


def instrument(model: nn.Module) -> None:
    """Swap the integers in the attributes of every module for `Sized` ones, but for zeros, which stay under any plan.

    `Untouched` swaps them back.
    """
    for path, module in modules_of(model):
        held = vars(module)
        for name, value in held.items():
            if name not in OF_EVERY_MODULE and not name.startswith("__"):
                held[name] = _swapped(value, path, name)


OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _swapped(value: Any, path: str, name: str) -> Any:
    if value is None or isinstance(value, bool | float | str):
        return value
    if type(value) is dict or is_configuration(value):
        twin = copy.copy(value)
        held = settings(twin)
        for inner, number in list(held.items()):
            if isinstance(inner, str):
                held[inner] = _numbered(number, Attribute(path, inner, holder=name))
        return twin
    return _numbered(value, Attribute(path, name))


def _numbered(value: Any, source: Attribute) -> Any:
    """An integer, or the integers of a tuple or list, as `Sized` ones."""
    if _is_integer(value) and value:
        return Sized.of(value, source)
    if type(value) in (tuple, list) and all(map(_is_integer, value)) and any(value):
        return type(value)(Sized.of(v, source._replace(item=i)) for i, v in enumerate(value))
    return value


def settings(holder: Any) -> dict[str, Any]:
    """The names and values that a configuration holds."""
    return holder if isinstance(holder, dict) else vars(holder)


def is_configuration(value: object) -> bool:
    """Whether a value is a plain object that holds settings: attributes, no tensors, no modules, no code."""
    if (
        isinstance(value, nn.Module | torch.Tensor | type)
        or callable(value)
        or type(value).__module__ == "builtins"
    ):
        return False
    held = getattr(value, "__dict__", None)
    return bool(held) and not any(isinstance(v, nn.Module | torch.Tensor) for v in (held or {}).values())


def _is_integer(value: object) -> bool:
    return type(value) is int
