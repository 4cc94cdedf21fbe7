"""Numbers in attributes that follow a plan: `num_heads`, `groups`, `hidden_size`, a tuple given to a `view`.

`provenance.py` tells which attribute supplied which number of which op; the labels tell what that number must become.
Afterwards the pruned copy is recorded again and held, op by op, against the sizes that the labels promise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sned.errors import SurgeryError
from sned.graph.formulas import Attribute
from sned.graph.ir import Graph, Op, leaves
from sned.graph.modules import modules_of
from sned.graph.provenance import settings
from sned.graph.recording import BATCHES, Recording
from sned.graph.sizes import Sizes
from sned.graph.trace import record
from sned.surgery.solving import factors_of, solved

TIDY: Mapping[type[nn.Module], Mapping[str, tuple[str, int]]] = {
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
    nn.modules.batchnorm._NormBase: {"num_features": ("running_mean", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.Embedding: {"embedding_dim": ("weight", 1)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
}
"""Attributes of PyTorch's own layers that only describe a parameter: shown by `repr`, seldom read."""


class Unrepaired(SurgeryError):
    """A number could not be traced to an attribute.

    `op` is where it shows, or, if `elsewhere`, what came next (None where the network could not even be made); `part`
    is the axis (parameter, axis) that it gives, where that is known.
    """

    def __init__(
        self, op: Op | None, text: str, *, elsewhere: bool = False, part: tuple[str, int] | None = None
    ) -> None:
        super().__init__(text)
        self.op, self.elsewhere, self.part = op, elsewhere, part


@dataclass(frozen=True)
class Repair:
    """One attribute that was changed."""

    module: str
    attribute: str
    old: int
    new: int


def repair_attributes(model: nn.Module, graph: Graph, sizes: Sizes) -> tuple[Repair, ...]:
    """Change attributes of `model` (already sliced) to what the plan asks, as far as they can be traced."""
    modules = dict(modules_of(model))
    private: set[tuple[str, str]] = set()
    repairs = [_assign(modules, private, source, new) for source, new in solved(graph, sizes).items()]
    return (*repairs, *_tidy(model))


def check_sizes(model: nn.Module, graph: Graph, sizes: Sizes) -> None:
    """Record the pruned `model`, a copy, on tensors like those of the trace and hold it, op by op, against the plan.

    The copy is of no use afterwards: the pass may have left things in it.

    Raises:
        Unrepaired: a number could not be traced to an attribute; names the op and the module.
    """
    found = _first_difference(model, graph, sizes)
    if found is not None:
        op = graph.ops[found.at]
        kind = type(model.get_submodule(op.module)).__name__
        raise Unrepaired(
            op,
            f"Every size that changes must come from a parameter or an attribute, but {op.target} in module "
            f"{op.module!r} ({kind}) keeps its old one{found.failure}. "
            "Give that number as an attribute of the module, or protect the group.",
            elsewhere=found.elsewhere,
        )


def check_training(model: nn.Module, graph: Graph, trained: Recording) -> None:
    """Record the pruned `model`, a copy, in train mode: it must run and return the shapes of `trained`, since answers
    stay. The copy is of no use afterwards.

    Raises:
        Unrepaired: it does not.
    """
    failure, partial = "it returns other shapes", Recording()
    try:
        again = _recorded_again(model, graph, partial, device=trained.device, training=True)
        if _returned(again) == _returned(trained):
            return
    except Exception as error:  # noqa: BLE001 (the user's forward may raise anything)
        where = f"in module {partial.failed_in!r}: " if partial.failed_in else ""
        failure = f"{where}{type(error).__name__}: {error}"
    raise Unrepaired(None, f"the model does not train without some of it ({failure})", elsewhere=True)


def _recorded_again(
    model: nn.Module, graph: Graph, into: Recording, *, device: str, training: bool = False
) -> Recording:
    """What a pruned copy does on tensors like those of the trace; `into` says how far it got when it raises."""
    return record(
        model,
        graph.example,
        traced_batch(graph),
        into=into,
        device=device,
        training=training,
        sources=False,
        untouched=nullcontext(),
    )


def _returned(recording: Recording) -> list[tuple[int, ...]]:
    return [recording.tensors[number].shape for number in recording.outputs]


def traced_batch(graph: Graph) -> int | None:
    """The batch size of the recorded pass, where it takes any."""
    return BATCHES[0] if graph.batched else None


def _assign(
    modules: Mapping[str, nn.Module], private: set[tuple[str, str]], source: Attribute, new: int
) -> Repair:
    module = modules[source.module]
    if source.holder is not None:
        shared = getattr(module, source.holder)
        if (source.module, source.holder) not in private:  # other modules may hold the very same object
            private.add((source.module, source.holder))
            shared = copy.copy(shared)
            setattr(module, source.holder, shared)
        held = settings(shared)[source.name]
        settings(shared)[source.name] = _replaced(held, source.item, new)
    else:
        held = getattr(module, source.name)
        setattr(module, source.name, _replaced(held, source.item, new))
    return Repair(source.module, source.name, int(held if source.item is None else held[source.item]), new)


def _replaced(held: Any, item: int | None, new: int) -> Any:
    """A new number in the place of a number, or of one item of a tuple or list."""
    return new if item is None else type(held)(new if i == item else v for i, v in enumerate(held))


def _tidy(model: nn.Module) -> Iterator[Repair]:
    for path, module in modules_of(model):
        kind: Any = type(module)
        for attribute, parameter, axis in _fields(kind):
            tensor = getattr(module, parameter, None)
            old = getattr(module, attribute, None)
            if tensor is not None and isinstance(old, int) and tensor.shape[axis] != old:
                setattr(module, attribute, tensor.shape[axis])
                yield Repair(path, attribute, old, tensor.shape[axis])
        if isinstance(module, nn.modules.conv._ConvNd) and module.weight is not None:
            first, second = module.weight.shape[:2]
            inputs, outputs = (
                (first, second * module.groups) if module.transposed else (second * module.groups, first)
            )
            for attribute, new in (("in_channels", inputs), ("out_channels", outputs)):
                old = getattr(module, attribute)
                if old != new:
                    setattr(module, attribute, new)
                    yield Repair(path, attribute, old, new)


@cache
def _fields(kind: type) -> tuple[tuple[str, str, int], ...]:
    """What modules of a class have among `TIDY`: attribute, parameter, axis."""
    return tuple(
        (attribute, *described)
        for layer, fields in TIDY.items()
        if issubclass(kind, layer)
        for attribute, described in fields.items()
    )


LAYOUT = frozenset({"clone", "contiguous", "alias", "expand"})
"""Ops that PyTorch adds or leaves out as strides ask for; the computation is the same."""


@dataclass(frozen=True)
class Difference:
    """Where a pruned pass fails: the number of the op and what was raised.

    `elsewhere`: every op was right, and it was not PyTorch that raised, so that the op is only the next one.
    """

    at: int
    failure: str
    elsewhere: bool = False


def _first_difference(model: nn.Module, graph: Graph, sizes: Sizes) -> Difference | None:
    """How the pruned pass fails; None when it runs and every output has its size.

    Where shapes go wrong without an error, a bound of a slice or a factor may still be that of the dense network.
    """
    partial = Recording()
    failure, ours = "", False
    try:
        recording = _recorded_again(model, graph, partial, device=graph.recorded.device)
        if _returned(recording) == [sizes.shape(number) for number in graph.outputs]:
            at = _strayed(graph, recording, sizes)
            return None if at is None else Difference(at, " (it fits by chance)")
    except Exception as error:  # noqa: BLE001 (the user's forward may raise anything)
        failure = f" ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ours = isinstance(error, RuntimeError | IndexError)
    expected = [op for op in graph.ops if op.name not in LAYOUT]
    got = [op for op in partial.ops if op.name not in LAYOUT]
    for mine, theirs in zip(expected, got, strict=False):
        if _kind(mine) != _kind(theirs) or not _agrees(mine, theirs, partial, graph, sizes):
            return Difference(mine.index, failure)
    return Difference(expected[min(len(got), len(expected) - 1)].index, failure, elsewhere=not ours)


def _strayed(graph: Graph, recording: Recording, sizes: Sizes) -> int | None:
    """The first op that cuts elsewhere than the plan has it, that has another number because a size changed, or that a
    branch of the code left out or put in."""
    expected = [op for op in graph.ops if op.name not in LAYOUT]
    got = [op for op in recording.ops if op.name not in LAYOUT]
    factors = [(rescale.value, new) for rescale, new in factors_of(graph, sizes)]

    def known(old: float, new: float) -> bool:
        return any(
            math.isclose(old, a, rel_tol=1e-6) and math.isclose(new, b, rel_tol=1e-6) for a, b in factors
        )

    for mine, theirs in zip(expected, got, strict=False):
        if _kind(mine) != _kind(theirs):
            # PyTorch takes a product apart in other ways at other sizes; what works element by element is the code's.
            return mine.index if _elementwise(expected) != _elementwise(got) else None
        if _bounds(mine, sizes.arguments(mine)[0], sizes.shape) != _bounds(
            theirs, theirs.args, lambda n: recording.tensors[n].shape
        ):
            return mine.index
        for before, after in _constants(mine, theirs, graph, recording):
            if _written_anew(before, after) and not (before.ndim == 0 and known(float(before), float(after))):
                return mine.index
        whole = mine.pointwise or mine.name == "native_group_norm"  # elsewhere shapes tell
        wanted = _numbers_in(sizes.arguments(mine)[0], whole=whole)
        for old, new in zip(wanted, _numbers_in(theirs.args, whole=whole), strict=False):
            if not (known(old, new) or math.isclose(old, new, rel_tol=1e-6) or math.isnan(old)):
                return mine.index
    return None


def _elementwise(ops: Sequence[Op]) -> list[str]:
    """What is done element by element; not products of two tensors, which an einsum over a single position becomes. A
    layer adds its bias in its product or, as strides ask for, behind it."""
    return [
        "add" if op.name in _ADDING else op.name
        for op in ops
        if op.name in _ADDING or (op.pointwise and (op.name != "mul" or len(op.inputs) < 2))
    ]


_ADDING = ("addmm", "baddbmm")


def _bounds(op: Op, args: tuple[Any, ...], shape: Callable[[int], tuple[int, ...]]) -> Any:
    """Where an op cuts the axis that it cuts; None for ops that cut nothing."""
    if op.name not in ("slice", "select", "split", "unsafe_split", "split_with_sizes") or len(args) < 2:
        return None
    if "split" in op.name:
        return args[1]
    size = shape(args[0].id)[args[1]]
    return slice(*args[2:5]).indices(size) if op.name == "slice" else args[2] % max(size, 1)


def _numbers_in(args: Any, *, whole: bool) -> Iterator[float]:
    """The factors among arguments; whole numbers too, where asked."""
    return (n for n in leaves(args, int | float if whole else float) if not isinstance(n, bool))


def _constants(mine: Op, theirs: Op, graph: Graph, recording: Recording) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors with values of their own that an op reads in both passes."""
    before, after = graph.recorded.main.constants, recording.constants
    for old, new in zip(mine.inputs, theirs.inputs, strict=False):
        if old in before and new in after:
            yield before[old], after[new]


def _written_anew(old: Tensor, new: Tensor) -> bool:
    """Whether the code wrote other values into a tensor of the same shape, such as a factor worked out from a size."""
    alike = (old.shape, old.dtype) == (new.shape, new.dtype) and not (old.is_meta or new.is_meta)
    return alike and not torch.allclose(old, new, rtol=1e-6, atol=0, equal_nan=True)


def _kind(op: Op) -> str:
    return "view" if op.name in ("_unsafe_view", "reshape", "_reshape_alias") else op.name


def _agrees(expected: Op, got: Op, recording: Recording, graph: Graph, sizes: Sizes) -> bool:
    return all(
        other is not None and sizes.shape(number) == recording.tensors[other].shape
        for number, other in zip(expected.outputs, got.outputs, strict=True)
        if number in graph.read
    )
