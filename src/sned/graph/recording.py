"""What one recorded forward pass left behind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from sned.graph.example import Example
from sned.graph.formulas import Formula
from sned.graph.ir import Op, Rows, Tensor
from sned.graph.provenance import Scale, Use

BATCHES = (2, 3)
"""The batch sizes traced. Not 1: a view could not be told from a merge with the batch axis."""


@dataclass(frozen=True)
class Call:
    """A module that ran and returned a tensor of the shape of one that it was given.

    Attributes:
        path: the module.
        first_op, last_op: range of the ops that it made.
        slot: which argument had that shape: a position, or a name.
        given, made: numbers of the tensor given and of the one returned.
        returned: None where the tensor itself was returned, else the length of the tuple that it led; the rest
            of that tuple was None.
        alone: whether that argument was the only one, given by position.
    """

    path: str
    first_op: int
    last_op: int
    slot: int | str
    given: int
    made: int
    returned: int | None
    alone: bool


@dataclass(frozen=True)
class Given:
    """A call of a module that the model does not hold.

    Attributes:
        path: the module.
        first_op, last_op: range of the ops that it made.
        args: numbers of the tensors given by position, in order; None of one that was not met before.
        named: of those given by name.
        made: of those returned.
    """

    path: str
    first_op: int
    last_op: int
    args: tuple[int | None, ...]
    named: Mapping[str, tuple[int | None, ...]]
    made: tuple[int | None, ...]


@dataclass
class Recording:
    """One recorded pass: ops over numbered tensors, and which numbers are parameters, inputs and outputs.

    `calls` tells of modules and what they returned, `given` of the calls of modules that the model does not hold, outer
    ones first, `asked` which modules the user's code asked whether they are in train mode and, during a trace, with
    what each was called (with nothing where other code than its `forward` asked), `failed_in` in which module the pass
    ended with an error, and `device` where its tensors were.
    """

    ops: list[Op] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    rows: tuple[Rows | None, ...] = ()
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    leaks: list[Formula] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    asked: dict[nn.Module, list[tuple[Any, ...]]] = field(default_factory=dict)
    failed_in: str | None = None
    device: str = "meta"

    def read(self) -> frozenset[int]:
        """Numbers of the tensors that an op reads or that leave the network."""
        return frozenset(self.outputs).union(*(op.inputs for op in self.ops))


@dataclass(frozen=True)
class Recorded:
    """All passes over one model: `main` in eval mode, at two batch sizes merged; `trained` where it adds to that.

    `batched` says whether the pass can be replayed at any batch size, `device` on which one it was recorded, and
    `outputs_last` whether a weight has its outputs on the last axis, as in Keras, rather than on the first.
    """

    model: nn.Module
    example: Example
    main: Recording
    batched: bool
    trained: Recording | None
    device: str = "meta"
    outputs_last: bool = False


def rows_in_step(few: Sequence[int], many: Sequence[int]) -> Rows | None:
    """How an output grows from the first of `BATCHES` to the second; None where it does so along no axis, along
    several, or not in step."""
    grown = [axis for axis, (a, b) in enumerate(zip(few, many, strict=True)) if a != b]
    if len(grown) != 1 or few[grown[0]] * BATCHES[1] != many[grown[0]] * BATCHES[0]:
        return None
    return Rows(grown[0], Fraction(few[grown[0]], BATCHES[0]))


def rows_of_one_size(recording: Recording, batch: int) -> tuple[Rows | None, ...]:
    """Where only one batch size runs, batches are all that there is to tell apart: what is worked out has the rows of
    its first axis from each."""
    held = {*recording.parameters.values(), *recording.constants}
    shapes = [() if number in held else recording.tensors[number].shape for number in recording.outputs]
    return tuple(Rows(0, Fraction(shape[0], batch)) if shape else None for shape in shapes)


def without(recording: Recording, gone: Collection[int]) -> Recording:
    """A recording with some of its ops left out, by number; nothing may read what they made."""
    if not gone:
        return recording
    at = [index - sum(number < index for number in gone) for index in range(len(recording.ops) + 1)]

    def made_nothing(held: Use | Scale) -> bool:
        return at[held.first_op] == at[held.last_op] and held.first_op < held.last_op

    uses = [use for use in recording.uses if not made_nothing(use)]
    scales = [scale for scale in recording.scales if not made_nothing(scale)]
    return replace(
        recording,
        ops=[replace(op, index=at[op.index]) for op in recording.ops if op.index not in gone],
        uses=[use._replace(first_op=at[use.first_op], last_op=at[use.last_op]) for use in uses],
        scales=[replace(scale, first_op=at[scale.first_op], last_op=at[scale.last_op]) for scale in scales],
        calls=[
            replace(call, first_op=at[call.first_op], last_op=at[call.last_op]) for call in recording.calls
        ],
        given=[
            replace(given, first_op=at[given.first_op], last_op=at[given.last_op])
            for given in recording.given
        ],
    )
