"""Write every ATen call of a forward pass into a `Recording`, with the module that made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sned.graph import memo
from sned.graph.example import tensors_in
from sned.graph.formulas import Sized, SizedFloat
from sned.graph.ir import Op, Ref, Tensor
from sned.graph.modules import modules_of
from sned.graph.recording import Call, Given, Recording
from sned.graph.values import Values


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every ATen call into a `Recording`, with the path of the module that made it.

    A model may call modules that it does not hold, and name their paths by identity in its attribute `_sned_paths`.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[int, str], recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = recording
        self.values = Values()
        self._names = parameters
        self._numbers: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # keeps id() unique
        self._foreign: Mapping[int, str] = getattr(model, "_sned_paths", {})
        self._paths = {**{id(module): path for path, module in modules_of(model)}, **self._foreign}
        self._stack: list[tuple[str, int]] = [("", 0)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = (self._plain(args), {name: self._plain(value) for name, value in (kwargs or {}).items()})
        named = kwargs or {}
        written = func
        if (squeezed := _SQUEEZED.get(func)) is not None:
            ones = tuple(axis for axis, size in enumerate(args[0].shape) if size == 1)
            written, held = squeezed, ((*held[0], ones), held[1])
        if self.values.answers(func, args):
            result = self.values.answer(func, args, named)
        else:
            result = memo.call(func, args, named)
            self.values.follow(func, args, named, result)
        target, computes, pointwise = _known(written)
        if computes:
            listed = result if isinstance(result, tuple | list) else [result]
            outputs = tuple(self.number(t) if isinstance(t, torch.Tensor) else None for t in listed)
            ops = self.recording.ops
            ops.append(Op(len(ops), target, *held, outputs, self._stack[-1][0], pointwise))
        return result

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor, given when it is first seen."""
        number = self._numbers.get(id(tensor))
        if (
            number is None or self.recording.tensors[number].shape != tensor.shape
        ):  # `transpose_` changes the shape
            number = self._numbers[id(tensor)] = len(self.recording.tensors)
            self._alive.append(tensor)
            self.recording.tensors.append(Tensor(tuple(tensor.shape), _name_of(tensor.dtype)))
            if (name := self._names.get(id(tensor))) is not None:
                self.recording.parameters[name] = number
        return number

    def known(self, tensor: torch.Tensor) -> int | None:
        """The number of a parameter, or of a tensor that was met already."""
        return self.number(tensor) if id(tensor) in self._names else self._numbers.get(id(tensor))

    def _plain(self, value: Any) -> Any:
        if type(value) in _ATOMS:
            return value
        if isinstance(value, torch.Tensor):
            return Ref(self.read(value))
        if isinstance(value, (tuple, list)):
            return tuple(map(self._plain, value))
        if isinstance(value, Sized):
            return int(value)
        return float(value) if isinstance(value, SizedFloat) else value

    def read(self, tensor: torch.Tensor) -> int:
        """The number of a tensor that is read or returned; one that no op made is kept as a constant."""
        known = id(tensor) in self._numbers or id(tensor) in self._names
        number = self.number(tensor)
        if not known:
            self.recording.constants[number] = self.values.of(tensor)
        return number

    def _note_call(self, path: str, start: int, given: Mapping[int | str, Any], result: Any) -> None:
        """Remember a call that returned a tensor, alone or with nothing beside it, of the shape of one given."""
        several = type(result) is tuple and bool(result) and all(item is None for item in result[1:])
        made = result[0] if several else result
        if not isinstance(made, torch.Tensor) or (out := self.known(made)) is None:
            return
        alike = (
            (slot, number)
            for slot, value in given.items()
            if isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (made.shape, made.dtype)
            if value is not made and (number := self.known(value)) is not None
        )
        for slot, number in islice(alike, 1):
            alone, length = len(given) == 1 and slot == 0, len(result) if several else None
            end = len(self.recording.ops)
            self.recording.calls.append(Call(path, start, end, slot, number, out, length, alone))

    def _entering(self, path: str, args: Any, kwargs: Mapping[str, Any]) -> Callable[[Any], None]:
        """What notes a call of a module that the model does not hold, given what it returned."""
        calls, start = self.recording.given, len(self.recording.ops)
        place, given = len(calls), self._known_in(args)
        named = {name: self._known_in(value) for name, value in kwargs.items()}

        def note(result: Any) -> None:
            end = len(self.recording.ops)
            calls.insert(place, Given(path, start, end, given, named, self._known_in(result)))

        return note

    def _known_in(self, nest: Any) -> tuple[int | None, ...]:
        """The numbers of the tensors in a nest; None for those that were not met."""
        return tuple(map(self.known, tensors_in(nest)))

    @contextmanager
    def module_paths(self, *, returns: bool) -> Iterator[None]:
        """Follow which module is running and, where asked, what it returns; hooks would take ten times as long."""
        plain = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path, start = self._paths.get(id(module), self._stack[-1][0]), len(self.recording.ops)
            noted = self._entering(path, args, kwargs) if id(module) in self._foreign else None
            self._stack.append((path, start))
            try:
                # Not what `module.compile()` made of it.
                result = module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            except Exception:
                if self.recording.failed_in is None:
                    self.recording.failed_in = path
                raise
            finally:
                self._stack.pop()
            if noted is not None:
                noted(result)
            if (calls := self.recording.asked.get(module)) is not None:
                calls.append(() if kwargs else args)
            if returns:
                given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
                with torch._C.DisableTorchFunction():  # no size that is read here is of interest
                    self._note_call(path, start, given, result)
            return result

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = plain  # type: ignore[method-assign]


_ATOMS = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout})
"""What most arguments are."""

_SQUEEZED = {torch.ops.aten.squeeze.default: torch.ops.aten.squeeze.dims}
"""Ops that drop every axis of size 1, which of one row alone is also that of the batch, and what is written down: the
same for the axes that it dropped."""


@cache
def _name_of(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


@cache
def _known(func: Any) -> tuple[str, bool, bool]:
    """The name of an op, whether it computes anything, and whether it does so element by element."""
    return str(func), func.namespace != "prim", torch.Tag.pointwise in func.tags
