"""How a file is called as its model is: which argument each tensor is, and where the rows of each output lie."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.errors import ExampleError, ModelError
from sned.export.parity import Array
from sned.export.structure import at_batch, batch_size
from sned.export.target import Session, Source
from sned.graph.example import Inputs, arguments


@dataclass(frozen=True)
class Call:
    """What the file needs to know of the model to be called like it.

    Attributes:
        parameters: of the model's forward pass that may be given by position, in order.
        tensors: where each input of the file stands in a call, "['ids']" or "['batch']['ids']", in the file's order.
        axes: of each output the axis that grows with the batch; None where none does.
        flags: of each argument what is no tensor in it, by where it stands; the file computes with these alone.
    """

    parameters: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    axes: tuple[int | None, ...] = ()
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def ordered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call in the file's order, by the names of the arguments.

        Raises:
            ExampleError: it holds other tensors than the file takes, or another flag than it was exported with.
        """
        named = _named(self.parameters, args, kwargs)
        given = _tensors(named)
        if given.keys() != set(self.tensors):
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
        return [given[place] for place in self.tensors]


def call_of(subject: Source, example: Inputs) -> Call:
    """How a network is called, going by its example inputs, and by its answers at two batch sizes."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    declared = inspect.signature(subject.module.forward).parameters.values()
    parameters = tuple(parameter.name for parameter in declared if parameter.kind in kinds)
    defaults = {one.name: one.default for one in declared if one.default is not one.empty}
    named = _named(parameters, *arguments(example))
    return Call(
        parameters, tuple(_tensors(named)), _batch_axes(subject, example), _flags({**defaults, **named})
    )


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


def _batch_axes(subject: Source, example: Inputs) -> tuple[int | None, ...]:
    """The axis of each output that grows as the batch does; None of all where only the example's batch runs."""
    rows = batch_size(example)
    own = [tuple(output.shape) for output in subject.run(example)]
    try:
        other = [tuple(output.shape) for output in subject.run(at_batch(example, rows + 1))]
    except ModelError:
        return (None,) * len(own)
    return tuple(_growing(few, many, rows) for few, many in zip(own, other, strict=True))


def _growing(few: Sequence[int], many: Sequence[int], rows: int) -> int | None:
    axes = [axis for axis, (size, larger) in enumerate(zip(few, many, strict=False)) if size != larger]
    in_step = len(few) == len(many) and all(few[axis] * (rows + 1) == many[axis] * rows for axis in axes)
    return axes[0] if len(axes) == 1 and in_step else None


def run_rows(session: Session, inputs: Sequence[Array], batch: int | None, call: Call) -> list[Array]:
    """Run any number of rows through a file that takes `batch` of them at a time (None: any number).

    Tensors whose first axis is as long as the first tensor's are cut along it; the last part is filled up from the
    first rows.

    Raises:
        ExampleError: there are no rows, or an output cannot be put together from those of several runs.
    """
    rows = next((array.shape[0] for array in inputs if array.ndim), 1)
    if not rows:
        raise ExampleError("Inputs must have at least one row, got none.")
    if batch is None or rows == batch:
        return session.run(inputs)
    picks = [np.arange(start, start + batch) % rows for start in range(0, rows, batch)]
    parts = [session.run([a[pick] if a.ndim and a.shape[0] == rows else a for a in inputs]) for pick in picks]
    return [
        _joined(pieces, axis, rows, batch)
        for pieces, axis in zip(zip(*parts, strict=True), call.axes, strict=True)
    ]


def _joined(pieces: Sequence[Array], axis: int | None, rows: int, batch: int) -> Array:
    """One output of several runs: its rows one after the other, or what all of the runs gave."""
    if axis is not None:
        share = pieces[0].shape[axis] * rows // batch
        return np.concatenate(pieces, axis).take(range(share), axis)
    if any(not np.array_equal(piece, pieces[0]) for piece in pieces):
        raise ExampleError(
            f"The file takes {batch} rows at a time, got {rows}, and an output of it comes from all rows of a run "
            f"together. Call it with {batch}, or export with an example of {rows}."
        )
    return pieces[0]
