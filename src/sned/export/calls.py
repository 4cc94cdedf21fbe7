"""How a file is called as its model is: which argument each tensor is, and where the rows of each output lie."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.errors import ExampleError, ModelError
from sned.export.checks import TOLERANCE
from sned.export.parity import Array, compare
from sned.export.structure import arrays, batched, fresh, in_parts
from sned.export.target import Session, Source
from sned.graph.example import Inputs, Leaf, arguments, batch_in, describe


@dataclass(frozen=True)
class Call:
    """What the file needs to know of the model to be called like it.

    Attributes:
        parameters: of the model's forward pass that may be given by position, in order.
        tensors: each input of the file, as it was in the example, by where it stands in a call, "['ids']" or
            "['batch']['ids']", in the file's order.
        rows: of the example.
        axes: of each output the axis along which the rows lie; None where it is the same for all. None for all where
            the answers to some rows depend on others, or are not told at another batch size.
        flags: of each argument what is no tensor in it, by where it stands; the file computes with these alone.
    """

    parameters: tuple[str, ...] = ()
    tensors: Mapping[str, Leaf] = field(default_factory=dict)
    rows: int = 1
    axes: tuple[int | None, ...] | None = None
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def batched(self) -> tuple[bool, ...]:
        """Of each input whether its first axis is the batch, as in the example."""
        return tuple(leaf.batched(self.rows) for leaf in self.tensors.values())

    def ordered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call in the file's order, by the names of the arguments.

        Raises:
            ExampleError: it holds other tensors than the file takes, by their places, sizes or dtypes, or another flag
                than it was exported with.
        """
        named = _named(self.parameters, args, kwargs)
        given = _tensors(named)
        if given.keys() != self.tensors.keys():
            raise ExampleError(
                f"The file takes the tensors {', '.join(self.tensors)}, got {', '.join(given) or 'none'}. Call it "
                "with the arguments that it was exported with."
            )
        for name, flags in _flags(named).items():
            kept = self.flags.get(name, {})
            if flags != kept:
                raise ExampleError(
                    f"The file computes with what its example gave as '{name}', {_said(kept)}, got {_said(flags)}. "
                    "Leave the argument out, or export with an example that has the other value."
                )
        return [self._checked(place, given[place]) for place in self.tensors]

    def _checked(self, place: str, tensor: Tensor) -> Tensor:
        leaf = self.tensors[place]
        grows, wanted = leaf.batched(self.rows), getattr(torch, leaf.dtype)
        alike = tensor.shape[grows:] == leaf.shape[grows:] and tensor.ndim == len(leaf.shape)
        if not alike or not torch.can_cast(tensor.dtype, wanted):
            sizes = ", ".join(["any"] * grows + [str(size) for size in leaf.shape[grows:]])
            got = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            raise ExampleError(
                f"The file takes {leaf.dtype}[{sizes}] as {place}, as in the example that it was exported with, got "
                f"{got}. Give it such a tensor, or export with another example."
            )
        return tensor.to(wanted)


def call_of(subject: Source, example: Inputs, axes: tuple[int | None, ...] | None = None) -> Call:
    """How a network is called, going by its example inputs; `axes` is what `row_axes` told."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    declared = inspect.signature(subject.module.forward).parameters.values()
    parameters = tuple(parameter.name for parameter in declared if parameter.kind in kinds)
    defaults = {one.name: one.default for one in declared if one.default is not one.empty}
    named = _named(parameters, *arguments(example))
    described = describe(example)
    tensors = dict(zip(_tensors(named), described.leaves(), strict=True))
    return Call(parameters, tensors, described.batch, axes, _flags({**defaults, **named}))


def _named(parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those beyond the parameters by their place."""
    names = [*parameters[: len(args)], *(f"*{place}" for place in range(len(parameters), len(args)))]
    twice = kwargs.keys() & {*names}
    if twice:
        raise ExampleError(f"An argument is given once, got '{min(twice)}' by position and by name.")
    return {**dict(zip(names, args, strict=True)), **kwargs}


def _tensors(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call by where they stand in it."""
    return {place: leaf for place, leaf in _leaves(named).items() if isinstance(leaf, Tensor)}


def _flags(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is no tensor in each argument, by where it stands."""
    return {
        name: {place: leaf for place, leaf in _leaves(value).items() if not isinstance(leaf, Tensor)}
        for name, value in named.items()
    }


def _leaves(nest: Any) -> dict[str, Any]:
    return {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(nest)[0]}


def _said(flags: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{place}: {value!r}" if place else repr(value) for place, value in flags.items())
        or "nothing"
    )


def row_axes(subject: Source, example: Inputs, tolerance: float = TOLERANCE) -> tuple[int | None, ...] | None:
    """Where the answers to two batches lie in the answers to both together, as `Call.axes`.

    Answers are those to the same rows if they differ by no more than `tolerance` of the largest.
    """
    rows = batch_in(example)
    both = fresh(example, 2 * rows, seed=0)
    try:
        runs = [arrays(subject.run(part)) for part in (*in_parts(both, rows, batched(example)), both)]
    except ModelError:
        return None
    axes: list[int | None] = []
    for first, second, together in zip(*runs, strict=True):
        found = [axis for axis in range(first.ndim) if _are_beside(first, second, together, axis, tolerance)]
        if not found and not (_equal(first, together) and _equal(second, together)):
            return None
        axes.append(found[0] if found else None)
    return tuple(axes)


def _are_beside(first: Array, second: Array, together: Array, axis: int, tolerance: float) -> bool:
    if first.shape != second.shape:  # it depends on the values how many there are
        return False
    joined = np.concatenate((first, second), axis)
    return joined.shape == together.shape and compare([joined], [together]).within(tolerance)


def _equal(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def run_rows(session: Session, inputs: Sequence[Array], batch: int | None, call: Call) -> list[Array]:
    """Run any number of rows through a file that takes `batch` of them at a time (None: any number).

    Inputs that hold the batch are cut, but for one that has a single row for all the others; the last part is filled
    up from the first rows.

    Raises:
        ExampleError: there are no rows, or not equally many, or the answers cannot be put together from several runs.
    """
    counts = {array.shape[0] for array, grows in zip(inputs, call.batched, strict=True) if grows}
    if 0 in counts:
        raise ExampleError("Inputs must have at least one row, got none.")
    if batch is None or counts <= {batch}:
        return session.run(inputs)
    if len(counts - {1}) > 1:
        raise ExampleError(
            f"Inputs must have equally many rows, got {sorted(counts)}. The first axis is the batch."
        )
    rows = max(counts)
    if call.axes is None:
        raise ExampleError(
            f"The file takes {batch} rows at a time, got {rows}, and its answers to some rows depend on others in the "
            f"same run. Call it with {batch}, or export with an example of {rows}."
        )
    cut = [grows and array.shape[0] == rows for array, grows in zip(inputs, call.batched, strict=True)]
    picks = [np.arange(start, start + batch) % rows for start in range(0, rows, batch)]
    parts = [
        session.run([a[pick] if cuts else a for a, cuts in zip(inputs, cut, strict=True)]) for pick in picks
    ]
    return [
        pieces[0] if axis is None else _joined(pieces, axis, rows, batch)
        for pieces, axis in zip(zip(*parts, strict=True), call.axes, strict=True)
    ]


def _joined(pieces: Sequence[Array], axis: int, rows: int, batch: int) -> Array:
    """One output of several runs, its rows one after the other."""
    share = pieces[0].shape[axis] * rows // batch
    return np.concatenate(pieces, axis).take(range(share), axis)
