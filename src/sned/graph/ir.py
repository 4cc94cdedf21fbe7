"""What a network is, in plain data: recorded ops, the tensors between them, and the groups of units that go together.

Nothing here knows PyTorch or reads a weight, so a graph can cross a process and a cost model can use it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sned.graph.coupling import Coupling
    from sned.graph.example import Example
    from sned.graph.layers import Layer
    from sned.graph.plan import Plan
    from sned.graph.provenance import Use
    from sned.graph.rescale import Rescale

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Ref:
    """A tensor inside the arguments of an `Op`, by its number in `Graph.tensors`."""

    id: int


@dataclass(frozen=True)
class Affine:
    """An integer argument that grows with the batch size: `base + slope * batch`."""

    base: int
    slope: int

    def __call__(self, batch: int) -> int:
        return self.base + self.slope * batch


@dataclass(frozen=True)
class Rows:
    """How an output grows with the batch: along `axis`, by `each` rows an input."""

    axis: int
    each: Fraction


@dataclass(frozen=True)
class Tensor:
    """Shape and dtype of one recorded tensor; `shape` is that of the traced batch size."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Op:
    """One recorded ATen call.

    `args` and `kwargs` hold a `Ref` for each tensor (also inside lists) and an `Affine` for each integer that depends
    on the batch size; `outputs` holds the number of each tensor returned, None where none was; `module` is the
    path of the innermost module that made the call.
    """

    index: int
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    module: str
    pointwise: bool = False

    @cached_property
    def name(self) -> str:
        """The op without namespace and overload: `aten.add.Tensor` is `add`."""
        return self.target.split(".")[1]

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the tensors read, in the order of the arguments."""
        return tuple(ref.id for ref in leaves((self.args, *self.kwargs.values()), Ref))

    @cached_property
    def grows(self) -> bool:
        """Whether an argument depends on the batch size."""
        return bool(leaves((self.args, *self.kwargs.values()), Affine))


def leaves(value: Any, kind: Any = object) -> list[Any]:
    """What nested tuples and lists hold, in order, as far as it is of a kind (a class, or several joined by `|`)."""
    if not isinstance(value, (tuple, list)):
        return [value] if isinstance(value, kind) else []
    found: list[Any] = []
    for item in value:
        if isinstance(item, (tuple, list)):
            found += leaves(item, kind)
        elif isinstance(item, kind):
            found.append(item)
    return found


@dataclass(frozen=True)
class Term:
    """`count` positions of an axis that survive in proportion to the product of what the `groups` (indices) keep."""

    count: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Slices:
    """What the units of a group own on one axis of one parameter: `positions[u]` are the `k` indices of unit `u`.

    `output` says whether that axis is of what the layer makes: the first one in PyTorch, the last one in Keras.
    """

    parameter: str
    axis: int
    positions: IntArray
    output: bool = False


@dataclass(frozen=True)
class Group:
    """Interchangeable units: channels, neurons, heads, dimensions inside heads, embedding dimensions.

    Attributes:
        index: position in `Graph.groups`.
        name: the module whose outputs the units are, such as `layer1.0.conv1`; unique in the graph.
        size: how many units there are.
        slices: every slice of every parameter that goes with each unit.
        cells: `[size]`, the cell of each unit; a plan keeps equally many units in every cell (one cell: free choice).
        exact: removing units equals setting their slices to zero (no normalisation, mean or softmax spans them).
    """

    index: int
    name: str
    size: int
    slices: tuple[Slices, ...]
    cells: IntArray = field(repr=False)
    exact: bool

    @property
    def cell_count(self) -> int:
        """In how many cells the units lie; the units kept are a multiple of it."""
        return int(self.cells.max()) + 1

    @property
    def cell_size(self) -> int:
        """Units in each cell."""
        return self.size // self.cell_count


@dataclass(frozen=True)
class Frozen:
    """Units that stay, and why: the `op` in `module` that fixed them."""

    name: str
    size: int
    op: str
    module: str
    reason: str


@dataclass(frozen=True, eq=False)
class Graph:
    """A forward pass as data, with the groups of units that must go together. Made by `sned.trace`.

    Attributes:
        ops: the recorded calls, in order.
        tensors: shape and dtype of every tensor, by number.
        parameters: the tensor of every parameter and buffer that the pass read, or a pass in training mode, by name.
        trainable: the names among `parameters` that are parameters (the others are buffers).
        aliases: further names of tied parameters, `{alias: name}`.
        unread: names of parameters that no traced path read; they are never cut.
        inputs, outputs: tensors that enter and leave, flattened in order.
        rows: how each output grows with the batch; None of one that does not, or along several axes.
        constants: tensors that the forward reads and that are neither (in the framework's own type), by number.
        batch: the traced batch size.
        batched: whether any batch size can be replayed; else only the traced one.
        example: what the example inputs looked like (shapes, dtypes, nesting), enough to trace again.
        coupling: which positions of which tensors go together.
        uses: which attribute or axis supplied which number.
        rescales: weights that make up for factors that follow from sizes (`head_dim ** -0.5`).
        model: the network itself, for stages that read weights; None in a graph that came from another process.
        recorded: what the graph was built from, to build it again with less freedom.
        bypassed: layers that were left out of the user's network to make `model`.
        told: the layers that can be left out, where the network itself tells them (of Keras); else None.
    """

    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
    parameters: Mapping[str, int]
    trainable: frozenset[str]
    aliases: Mapping[str, str]
    unread: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Any]
    batch: int
    batched: bool
    example: Example
    coupling: Coupling
    uses: tuple[Use, ...] = ()
    rescales: tuple[Rescale, ...] = ()
    model: Any = field(default=None, repr=False)
    recorded: Any = field(default=None, repr=False)
    bypassed: tuple[str, ...] = ()
    rows: tuple[Rows | None, ...] = ()
    told: tuple[Layer, ...] | None = field(default=None, repr=False)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Whole layers and residual branches that can be left out."""
        from sned.graph.layers import layers

        return layers(self) if self.told is None else self.told

    @cached_property
    def recurrent(self) -> frozenset[str]:
        """Paths of the layers that are recorded step by step, and are one op of an exported file."""
        from sned.graph.modules import recurrent

        return recurrent(self.model)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that can lose units, in the order in which the network first uses them."""
        return self.coupling.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What stays as it is, with the reason."""
        return self.coupling.frozen

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the structure: ops with their numbers, shapes and names, not weights."""
        structure = [
            [
                [op.target, *map(str, leaves((op.args, *op.kwargs.values()), int | float | Affine))]
                for op in self.ops
            ],
            [[name, *self.tensors[i].shape] for name, i in sorted(self.parameters.items())],
        ]
        return hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:16]

    @cached_property
    def written(self) -> Mapping[str, int]:
        """Those of `parameters` that the pass writes into: what counts its calls, or remembers what it saw."""
        from sned.graph.replay import written

        return written(self)

    @cached_property
    def read(self) -> frozenset[int]:
        """Numbers of the tensors that an op reads or that leave the network."""
        return frozenset(self.outputs).union(*(op.inputs for op in self.ops))

    def group(self, name: str) -> Group:
        """The group called `name`.

        Raises:
            PlanError: there is none; close names are listed.
        """
        from sned.errors import PlanError, close_names

        if name not in self._by_name:
            raise PlanError(f"No group is called {name!r}. {close_names(name, list(self._by_name))}")
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def terms(self, tensor: int, axis: int) -> tuple[Term, ...]:
        """The size of an axis under any plan: the sum over terms of `count * prod(kept_g / size_g)`."""
        return self.coupling.terms(tensor, axis, self.tensors[tensor].shape[axis])

    def plan(self, removed: Mapping[str, Sequence[int]]) -> Plan:
        """The plan that removes the given units, `{group name: unit numbers}`.

        Raises:
            PlanError: an unknown group or unit, a whole group, or unequal counts in the cells of a group.
        """
        from sned.graph.plan import make_plan

        return make_plan(self, removed)
