"""Factors that follow from a size that pruning changes: attention divides by the root of the head dimension.

The recorded factor is what the dense network used. The pruned module will work out another one, so weights upstream
are multiplied by what makes up for it. Where no weights can, the size must not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sned.graph.ir import IntArray, Op, Ref
from sned.graph.labels import Boxes
from sned.graph.provenance import Formula, Scale

PASSED = frozenset(
    {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t", "clone", "alias", "select",
     "slice", "split", "split_with_sizes", "unsafe_split", "unbind", "expand", "contiguous", "_to_copy", "neg", "cat",
     "stack", "flip", "roll", "index", "copy", "detach", "constant_pad_nd", "index_select"}
)  # fmt: skip
"""Ops whose output is scaled when all their tensor inputs are."""

NORMS = {"native_layer_norm": (2, 3), "_fused_rms_norm": (2,), "native_batch_norm": (1, 2), "native_group_norm": (1, 2)}
"""Normalisations, and where their weight and bias stand among the arguments."""

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1)}
"""Products, and where their factors stand among the arguments."""

MAX_DEPTH = 64


@dataclass(frozen=True, eq=False)
class Site:
    """Positions of a parameter along one axis (None: all of it)."""

    parameter: str
    axis: int
    positions: IntArray | None


@dataclass(frozen=True)
class Rescale:
    """Weights that make up for a factor: they are multiplied by the old factor over the new one, to `power`."""

    formula: Formula
    value: float
    power: int
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Lost:
    """A factor that no weights can make up for."""

    formula: Formula


class Upstream:
    """Finds the weights that scale a tensor."""

    def __init__(
        self,
        ops: Sequence[Op],
        parameters: Mapping[int, str],
        first_labels: Mapping[tuple[str, int], int],
        shapes: Sequence[tuple[int, ...]],
        boxes: Mapping[int, Boxes],
    ) -> None:
        self._producer = {n: op for op in ops for n in op.outputs if n is not None and n not in op.inputs}
        self._parameters = parameters
        self._first = first_labels
        self._shapes = shapes
        self._boxes = boxes

    def sites(self, tensor: int, ids: IntArray, depth: int = 0) -> tuple[Site, ...] | None:
        """Where to scale so that `tensor` is scaled where it carries the labels `ids`; None if that cannot be done."""
        if tensor in self._parameters:
            return self._of_parameter(self._parameters[tensor], ids)
        op = self._producer.get(tensor)
        if op is None or depth > MAX_DEPTH:
            return None
        if op.name in PASSED:
            return self._all(op.inputs[:1] if op.name in ("index", "index_select") else op.inputs, ids, depth)
        if op.name.rstrip("_") in ("add", "sub"):
            return self._all(op.inputs, ids, depth) if len(op.inputs) == 2 else None
        if op.name.rstrip("_") in ("mul", "div"):
            return self._any(op.inputs[: 2 if op.name.startswith("mul") else 1], ids, depth)
        if op.name in NORMS:
            vectors = [op.args[i] for i in NORMS[op.name]]
            given = [v.id for v in vectors if isinstance(v, Ref)]
            return self._all(given, ids, depth, whole=True) if given and isinstance(vectors[0], Ref) else None
        return self._product(op, ids, depth) if op.name in PRODUCTS else None

    def _all(
        self, tensors: Sequence[int], ids: IntArray, depth: int, *, whole: bool = False
    ) -> tuple[Site, ...] | None:
        found: list[Site] = []
        for tensor in tensors:
            sites = self.sites(tensor, np.zeros(0, np.int64) if whole else ids, depth + 1)
            if sites is None:
                return None
            found += sites
        return _merged(found) if tensors else None

    def _any(self, tensors: Sequence[int], ids: IntArray, depth: int) -> tuple[Site, ...] | None:
        return next((sites for t in tensors if (sites := self.sites(t, ids, depth + 1)) is not None), None)

    def _product(self, op: Op, ids: IntArray, depth: int) -> tuple[Site, ...] | None:
        left, right = (op.args[i].id for i in PRODUCTS[op.name])
        weight = self._root(right)
        if weight is None:
            return self.sites(left, self._ids(left), depth + 1)
        axis = self._axis_of(weight, ids)
        if axis is None:
            return None
        first = self._first[(weight, axis)]
        size = self._size(weight, axis)
        positions = np.unique(ids[(ids >= first) & (ids < first + size)]) - first
        bias = self._bias(op)
        if bias is None and op.name in ("addmm", "baddbmm"):
            return None
        return (Site(weight, axis, positions), *((Site(bias, 0, positions),) if bias else ()))

    def _bias(self, op: Op) -> str | None:
        ref = op.args[0] if op.name in ("addmm", "baddbmm") else op.args[2] if op.name == "convolution" else None
        return self._root(ref.id) if isinstance(ref, Ref) else None

    def _root(self, tensor: int) -> str | None:
        """The parameter that a tensor is a view of."""
        while tensor not in self._parameters:
            op = self._producer.get(tensor)
            if op is None or op.name not in ("t", "permute", "transpose", "view", "clone", "alias", "_to_copy", "expand"):
                return None
            tensor = op.inputs[0]
        return self._parameters[tensor]

    def _axis_of(self, parameter: str, ids: IntArray) -> int | None:
        """The axis of a parameter that some of the labels lie on."""
        for (name, axis), first in self._first.items():
            if name == parameter and bool(((ids >= first) & (ids < first + self._size(name, axis))).any()):
                return axis
        return None

    def _size(self, parameter: str, axis: int) -> int:
        return self._shapes[next(n for n, name in self._parameters.items() if name == parameter)][axis]

    def _of_parameter(self, parameter: str, ids: IntArray) -> tuple[Site, ...]:
        axis = self._axis_of(parameter, ids)
        if axis is None:
            return (Site(parameter, 0, None),)
        first = self._first[(parameter, axis)]
        inside = ids[(ids >= first) & (ids < first + self._size(parameter, axis))]
        return (Site(parameter, axis, np.unique(inside) - first),)

    def _ids(self, tensor: int) -> IntArray:
        return np.concatenate([np.zeros(0, np.int64), *(box.ids.ravel() for box in self._boxes.get(tensor, ()))])


def _merged(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Each position once: branches that meet again share the weights that they came from."""
    found: dict[tuple[str, int], IntArray | None] = {}
    for site in sites:
        key = (site.parameter, site.axis)
        before = found.get(key, np.zeros(0, np.int64))
        whole = before is None or site.positions is None
        found[key] = None if whole else np.union1d(before, site.positions)  # type: ignore[arg-type]
    return tuple(Site(name, axis, positions) for (name, axis), positions in found.items())


def rescales(ops: Sequence[Op], scales: Sequence[Scale], upstream: Upstream) -> Iterator[Rescale | Lost]:
    """For every factor that follows from a size, the weights that make up for it."""
    for scale in scales:
        for op in ops[scale.first_op : scale.last_op]:
            if op.name.rstrip("_") not in ("mul", "div") or not _holds(op, scale.value):
                continue
            (tensor, *_) = op.inputs
            sites = upstream.sites(tensor, upstream._ids(tensor))
            power = -1 if op.name.startswith("div") else 1
            yield Lost(scale.formula) if sites is None else Rescale(scale.formula, scale.value, power, sites)


def _holds(op: Op, value: float) -> bool:
    return any(isinstance(a, float) and abs(a - value) <= 1e-9 * abs(value) for a in op.args)
