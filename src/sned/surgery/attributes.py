"""Numbers in attributes that follow a plan: `num_heads`, `groups`, `hidden_size`, a tuple given to a `view`.

The pruned copy is recorded on meta tensors and held, op by op, against the sizes that the labels promise. At the first
op that differs, an attribute of the module that made the call (or of one around it) is found that holds the old number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sned.errors import SurgeryError
from sned.graph.coupling import Keep
from sned.graph.ir import Graph, Op
from sned.graph.sizes import Sizes
from sned.graph.trace import BATCHES, Recording, record

TIDY: Mapping[type[nn.Module], Mapping[str, tuple[str, int]]] = {
    nn.modules.conv._ConvNd: {},
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
    nn.modules.batchnorm._NormBase: {"num_features": ("running_mean", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.Embedding: {"embedding_dim": ("weight", 1)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
}
"""Attributes of PyTorch's own layers that only describe a parameter: shown by `repr`, seldom read."""


@dataclass(frozen=True)
class Repair:
    """One attribute that was changed."""

    module: str
    attribute: str
    old: Any
    new: Any


def repair_attributes(model: nn.Module, graph: Graph, keep: Keep) -> tuple[Repair, ...]:
    """Change attributes of `model` (already sliced) until every op has the size that the plan promises.

    Raises:
        SurgeryError: a number could not be traced to an attribute; names the op and the module.
    """
    repairs = list(_tidy(model))
    sizes = Sizes(graph, keep, BATCHES[0] if graph.batched else None)
    modules = dict(model.named_modules())
    limit = 4 * len(modules) + 16
    for _ in range(limit):
        at, failure = _first_difference(model, graph, sizes)
        if at is None:
            return tuple(repairs)
        made = _repair_at(modules, graph.ops[at], sizes)
        if not made:
            op = graph.ops[at]
            raise SurgeryError(
                f"Every size that changes must come from a parameter or an attribute, but {op.target} in module "
                f"{op.module!r} ({type(modules[op.module]).__name__}) keeps its old one{failure}. "
                "Give that number as an attribute of the module, or protect the group."
            )
        repairs += made
    raise SurgeryError(f"Attributes could not be repaired within {limit} steps. Please report this network.")


def _tidy(model: nn.Module) -> Iterator[Repair]:
    for path, module in model.named_modules():
        for kind, fields in TIDY.items():
            if not isinstance(module, kind):
                continue
            for attribute, (parameter, axis) in fields.items():
                tensor = getattr(module, parameter, None)
                old = getattr(module, attribute, None)
                if tensor is not None and isinstance(old, int) and tensor.shape[axis] != old:
                    setattr(module, attribute, tensor.shape[axis])
                    yield Repair(path, attribute, old, tensor.shape[axis])


def _first_difference(model: nn.Module, graph: Graph, sizes: Sizes) -> tuple[int | None, str]:
    """Number of the first op that fails or makes another shape than promised, and how; None when all agree."""
    partial = Recording()
    failure = ""
    try:
        record(model, graph.example, BATCHES[0] if graph.batched else None, into=partial)
    except Exception as error:
        failure = f" ({type(error).__name__}: {str(error).splitlines()[0]})"
    for expected, got in zip(graph.ops, partial.ops, strict=False):
        if expected.target != got.target or not _agrees(expected, got, partial, graph, sizes):
            return expected.index, failure
    if len(partial.ops) < len(graph.ops):
        return len(partial.ops), failure
    return None, ""


def _agrees(expected: Op, got: Op, recording: Recording, graph: Graph, sizes: Sizes) -> bool:
    return all(
        other is not None and sizes.shape(number) == recording.tensors[other].shape
        for number, other in zip(expected.outputs, got.outputs, strict=True)
        if number in graph.read
    )


def _changes(op: Op, sizes: Sizes) -> set[tuple[int, int]]:
    """Pairs (old, new) of every number that changes at an op: in its arguments and in the shapes around it."""
    pairs: set[tuple[int, int]] = set()
    args, _ = sizes.arguments(op)
    pairs.update(_differing(sizes.plain(op), args))
    for number in (*op.outputs, *op.inputs):
        if number is not None:
            pairs.update(_differing(sizes.recorded(number), sizes.shape(number)))
    return pairs


def _differing(old: Any, new: Any) -> Iterator[tuple[int, int]]:
    if isinstance(old, tuple | list):
        for a, b in zip(old, new, strict=True):
            yield from _differing(a, b)
    elif type(old) is int and old != new:
        yield old, new


def _repair_at(modules: Mapping[str, nn.Module], op: Op, sizes: Sizes) -> list[Repair]:
    """Change the attributes that hold an old number: of the calling module, else of the nearest one around it."""
    pairs = _changes(op, sizes)
    for path in _around(op.module):
        module = modules.get(path)
        if module is not None and (made := list(_replace(path, module, pairs))):
            return made
    return []


def _around(path: str) -> Iterator[str]:
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _replace(path: str, module: nn.Module, pairs: Iterable[tuple[int, int]]) -> Iterator[Repair]:
    news: dict[int, set[int]] = {}
    for old, new in pairs:
        news.setdefault(old, set()).add(new)
    for attribute, value in list(vars(module).items()):
        if attribute.startswith("_") or attribute == "training":
            continue
        changed = _renumbered(value, news)
        if changed != value:
            setattr(module, attribute, changed)
            yield Repair(path, attribute, value, changed)


def _renumbered(value: Any, news: Mapping[int, set[int]]) -> Any:
    """An integer (or a tuple or list of them) with the old numbers replaced, where the new one is plain."""
    if type(value) is int and len(news.get(value, ())) == 1:
        return next(iter(news[value]))
    if isinstance(value, tuple | list) and value and all(type(v) is int for v in value):
        return type(value)(_renumbered(v, news) for v in value)
    return value
