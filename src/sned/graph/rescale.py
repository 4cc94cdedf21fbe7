"""Factors that follow from a size that pruning changes: attention divides by the root of the head dimension.

The recorded factor is what the dense network used. The pruned module will work out another one, so weights upstream
are multiplied by what makes up for it. Where no weights can, the size must not change.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from sned.graph.formulas import Formula
from sned.graph.ir import IntArray, Op, Ref
from sned.graph.labels import Boxes
from sned.graph.provenance import Scale

PASSED = frozenset(
    {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t", "clone", "alias", "select",
     "slice", "split", "split_with_sizes", "unsafe_split", "unbind", "expand", "contiguous", "_to_copy", "neg", "cat",
     "stack", "flip", "roll", "index", "copy", "detach", "constant_pad_nd", "index_select"}
)  # fmt: skip
"""Ops whose output is scaled when all their tensor inputs are."""

NORMS = {
    "native_layer_norm": (2, 3),
    "_fused_rms_norm": (2,),
    "native_batch_norm": (1, 2),
    "native_group_norm": (1, 2),
}
"""Normalisations, and where their weight and bias stand among the arguments."""

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "convolution": (0, 1)}
"""Products, and where their factors stand among the arguments."""

VIEWS = frozenset({"t", "permute", "transpose", "view", "unsqueeze", "squeeze", "clone", "alias", "_to_copy", "expand",
                   "split", "slice", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes",
                   "detach"})  # fmt: skip
"""Ops between a parameter and the product that reads it, or a part of it."""

MAX_DEPTH = 64

Path = dict[int, IntArray]
"""Ops on the way up from a factor to the weights that make up for it, with the labels that are scaled."""


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

    @property
    def key(self) -> Hashable:
        """The same for factors that the same weights make up for, in whichever pass."""
        sites = {
            (s.parameter, s.axis, None if s.positions is None else s.positions.tobytes()) for s in self.sites
        }
        return self.value, self.power, frozenset(sites)


@dataclass(frozen=True)
class Lost:
    """A factor that no weights can make up for, and the op that multiplies by it."""

    formula: Formula
    op: Op


class Upstream:
    """Finds the weights that scale a tensor, and makes sure that they scale nothing else."""

    def __init__(
        self,
        ops: Sequence[Op],
        parameters: Mapping[int, str],
        first_labels: Mapping[tuple[str, int], int],
        shapes: Sequence[tuple[int, ...]],
        boxes: Mapping[int, Boxes],
        factors: Set[int],
    ) -> None:
        self._ops = {op.index: op for op in ops}
        self._producer = {n: op for op in ops for n in op.outputs if n is not None and n not in op.inputs}
        self._readers: dict[int, list[Op]] = {}
        for op in ops:
            for number in set(op.inputs):
                self._readers.setdefault(number, []).append(op)
        self._parameters = parameters
        self._numbers = {name: number for number, name in parameters.items()}
        self._first = first_labels
        self._shapes = shapes
        self._boxes = boxes
        self._factors = factors
        self._path: Path = {}
        self._factor = 0

    def scaling(self, op: Op, factor: int) -> tuple[tuple[Site, ...] | None, Path]:
        """Where to scale so that the first input of `op` is scaled, and the way there; None if that cannot be done.

        `factor` is which one to scale of a product of two tensors that are worked out, 0 or 1.
        """
        tensor = next((number for number in op.inputs if number not in self._factors), None)
        if tensor is None:  # of two numbers, one of which is a size: `torch.div(x.shape[1], 2)`
            return None, {}
        ids = self.labels(tensor)
        self._path, self._factor = {op.index: ids}, factor
        return self.sites(tensor, ids), self._path

    def labels(self, tensor: int) -> IntArray:
        """Every label that a tensor carries."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(box.ids.ravel() for box in self._boxes.get(tensor, ()))]
        )

    def only_on(self, path: Path, sites: Sequence[Site]) -> bool:
        """Whether no op beside the path reads what is scaled (it may read other labels of the same tensors)."""
        self._path, scaled = path, self._labels_of(sites)
        for index, carried in list(path.items()):
            # Labels along other axes (rows of learned queries, say) do not tell what is scaled from what is not.
            own = carried[np.isin(carried, scaled)]
            ids = own if own.size else carried
            op = self._ops[index]
            for number in op.inputs:
                for reader in self._readers.get(number, []):
                    if reader.index not in path and self._reads(reader, number, ids):
                        return False
        return True

    def _labels_of(self, sites: Sequence[Site]) -> IntArray:
        """The labels that the scaled positions carry; none where all of a parameter is scaled."""
        found: list[IntArray] = []
        for site in sites:
            if site.positions is None:
                return np.zeros(0, np.int64)
            if (first := self._first.get((site.parameter, site.axis))) is not None:
                found.append(first + site.positions)
        return np.concatenate(found or [np.zeros(0, np.int64)])

    def _reads(self, reader: Op, number: int, ids: IntArray) -> bool:
        if number not in self._scaled:
            return False
        made = [self.labels(n) for n in reader.outputs if n is not None]
        held = np.concatenate([np.zeros(0, np.int64), *made])
        return reader.name not in PASSED or not held.size or bool(np.isin(ids, held).any())

    @property
    def _scaled(self) -> set[int]:
        return {n for index in self._path for n in self._ops[index].inputs if self._is_scaled(index, n)}

    def _is_scaled(self, index: int, number: int) -> bool:
        """Of a product only the weight and the bias are scaled, or one factor of two, of a normalisation likewise."""
        op = self._ops[index]
        if number in self._factors:
            return False
        if op.name in NORMS:
            return number in self._parameters
        if op.name in PRODUCTS:
            left, right = (op.args[i].id for i in PRODUCTS[op.name])
            stays = left if self._root(right) is not None or self._enters(op, left, right) == right else right
            return bool(number != stays or left == right)
        return True

    def _enters(self, op: Op, left: int, right: int) -> int:
        """The factor that is scaled of a product of two tensors that are worked out."""
        return (left, right)[self._factor if self._bias(op) is None else 0]

    def sites(self, tensor: int, ids: IntArray, depth: int = 0) -> tuple[Site, ...] | None:
        """Where to scale so that `tensor` is scaled where it carries the labels `ids`; None if that cannot be done."""
        if tensor in self._parameters:
            return self._of_parameter(self._parameters[tensor], ids)
        op = self._producer.get(tensor)
        if op is None or depth > MAX_DEPTH:
            return None
        self._path[op.index] = ids
        if op.name in PASSED:
            passed = op.inputs[:1] if op.name in ("index", "index_select") else op.inputs
            return self._all(passed, self._of_each(op, ids), depth)
        if op.name.rstrip("_") in ("add", "sub"):
            return self._sum(op, ids, depth) if len(op.inputs) == 2 else None
        if op.name.rstrip("_") in ("mul", "div"):
            return self._any(op.inputs[: 2 if op.name.startswith("mul") else 1], ids, depth)
        if op.name in NORMS:
            vectors = [op.args[i] for i in NORMS[op.name] if isinstance(op.args[i], Ref)]
            if not isinstance(op.args[NORMS[op.name][0]], Ref):
                return None
            return tuple(Site(self._parameters[v.id], 0, None) for v in vectors if v.id in self._parameters)
        return self._product(op, ids, depth) if op.name in PRODUCTS else None

    def _all(self, tensors: Sequence[int], ids: IntArray, depth: int) -> tuple[Site, ...] | None:
        found: list[Site] = []
        for tensor in tensors:
            sites = self.sites(tensor, ids, depth + 1)
            if sites is None:
                return None
            found += sites
        return _merged(found) if tensors else None

    def _of_each(self, op: Op, ids: IntArray) -> IntArray:
        """The labels that are scaled of what goes into an op: where all that it makes of several tensors is, those of
        each, of which what it makes carries one."""
        made = op.outputs[0]
        if len(op.inputs) < 2 or made is None or not np.isin(self.labels(made), ids).all():
            return ids
        return np.concatenate([ids, *(self.labels(t) for t in op.inputs)])

    def _sum(self, op: Op, ids: IntArray, depth: int) -> tuple[Site, ...] | None:
        """Both sides are scaled; a bias at the positions at which the product before it is."""
        tensors = op.inputs
        biases = [self._root(t) for t in tensors]
        others = [t for t, bias in zip(tensors, biases, strict=True) if bias is None]
        found = self._all(others, self._of_each(op, ids), depth)
        if found is None or len(others) == 2:
            return found
        ((bias, read),) = [(b, t) for t, b in zip(tensors, biases, strict=True) if b is not None]
        shape = self._shapes[self._numbers[bias]]
        main = found[0]
        if main.positions is None:
            return (main, Site(bias, 0, None)) if len(found) == 1 and self._entire(read, bias) else None
        # Which part it is of a bias that several products share.
        part = self.labels(read) - self._first.get((bias, 0), 0)
        size = self._size(main.parameter, main.axis)
        if len(shape) != 1 or size not in (shape[0], len(part)):
            return None
        return (*found, Site(bias, 0, main.positions if size == shape[0] else part[main.positions]))

    def _any(self, tensors: Sequence[int], ids: IntArray, depth: int) -> tuple[Site, ...] | None:
        for tensor in tensors:
            before = dict(self._path)
            sites = self.sites(tensor, ids, depth + 1)
            if sites is not None:
                return sites
            self._path = before
        return None

    def _product(self, op: Op, ids: IntArray, depth: int) -> tuple[Site, ...] | None:
        left, right = (op.args[i].id for i in PRODUCTS[op.name])
        weight = self._root(right)
        bias = self._bias(op)
        if weight is None:  # the weight is worked out, so all that enters is scaled, and all that is added
            made = op.outputs[0]
            if made is None or not np.isin(self.labels(made), ids).all():
                return None
            entering = self._enters(op, left, right)
            found = self.sites(entering, self.labels(entering), depth + 1)
            return found if bias is None or found is None else self._with_all_of(bias, found)
        axis = self._axis_of(weight, ids)
        if axis is None:  # axes that were merged ahead of the product, such as heads and what is inside them
            return (Site(weight, 0, None),) if bias is None and self._whole(op, right, weight, ids) else None
        first = self._first[(weight, axis)]
        positions = np.unique(ids[(ids >= first) & (ids < first + self._size(weight, axis))]) - first
        if bias is None:
            return (Site(weight, axis, positions),)
        biases = self._vector(bias, positions)
        return None if biases is None else (Site(weight, axis, positions), *biases)

    def _whole(self, op: Op, right: int, weight: str, ids: IntArray) -> bool:
        """Whether all that a product makes is scaled, and it reads all of its weight."""
        made = op.outputs[0]
        scaled = made is not None and bool(np.isin(self.labels(made), ids).all())
        return scaled and self._entire(right, weight)

    def _entire(self, tensor: int, parameter: str) -> bool:
        """Whether a view of a parameter holds all of it."""
        return math.prod(self._shapes[tensor]) == math.prod(self._shapes[self._numbers[parameter]])

    def _bias(self, op: Op) -> int | None:
        """The tensor that a product adds."""
        at = {"addmm": 0, "baddbmm": 0, "convolution": 2}.get(op.name)
        return op.args[at].id if at is not None and isinstance(op.args[at], Ref) else None

    def _with_all_of(self, bias: int, found: tuple[Site, ...]) -> tuple[Site, ...] | None:
        shape = self._shapes[bias]
        whole = self._vector(bias, np.arange(shape[0])) if len(shape) == 1 else None
        return None if whole is None else (*found, *whole)

    def _vector(self, tensor: int, positions: IntArray) -> tuple[Site, ...] | None:
        """Positions of a bias: a parameter, or several one after the other."""
        root = self._root(tensor)
        if root is not None:
            return (Site(root, 0, positions),)
        op = self._producer.get(tensor)
        if op is None or op.name != "cat":
            return None
        self._path[op.index] = np.zeros(0, np.int64)
        found: list[Site] = []
        start = 0
        for number in op.inputs:
            size = self._shapes[number][0]
            inside = positions[(positions >= start) & (positions < start + size)] - start
            sites = self._vector(number, inside) if inside.size else ()
            if sites is None:
                return None
            found += sites
            start += size
        return tuple(found)

    def _root(self, tensor: int) -> str | None:
        """The parameter that a tensor is a view of."""
        while tensor not in self._parameters:
            op = self._producer.get(tensor)
            if op is None or op.name not in VIEWS:
                return None
            self._path.setdefault(op.index, self.labels(tensor))
            tensor = op.inputs[0]
        return self._parameters[tensor]

    def _axis_of(self, parameter: str, ids: IntArray) -> int | None:
        """The axis of a parameter that some of the labels lie on."""
        for (name, axis), first in self._first.items():
            if name == parameter and bool(((ids >= first) & (ids < first + self._size(name, axis))).any()):
                return axis
        return None

    def _size(self, parameter: str, axis: int) -> int:
        return self._shapes[self._numbers[parameter]][axis]

    def _of_parameter(self, parameter: str, ids: IntArray) -> tuple[Site, ...] | None:
        axis = self._axis_of(parameter, ids)
        if axis is None:
            return None
        first = self._first[(parameter, axis)]
        inside = ids[(ids >= first) & (ids < first + self._size(parameter, axis))]
        return (Site(parameter, axis, np.unique(inside) - first),)


def _merged(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Each position once: branches that meet again share the weights that they came from."""
    found: dict[tuple[str, int], IntArray | None] = {}
    for site in sites:
        key = (site.parameter, site.axis)
        before = found.get(key, np.zeros(0, np.int64))
        whole = before is None or site.positions is None
        found[key] = None if whole else np.union1d(before, site.positions)  # type: ignore[arg-type]
    return tuple(Site(name, axis, positions) for (name, axis), positions in found.items())


@dataclass
class _Factor:
    """A factor that follows from a size, in every pass of the layer that multiplies by it."""

    rescale: Rescale
    met: list[tuple[Scale, Op]]
    path: Path


def rescales(ops: Sequence[Op], scales: Sequence[Scale], upstream: Upstream) -> Iterator[Rescale | Lost]:
    """For every factor that follows from a size, the weights that make up for it."""
    met = [
        (scale, op)
        for scale in scales
        for op in ops[scale.first_op : scale.last_op]
        if op.name.rstrip("_") in ("mul", "div") and _holds(op, scale)
    ]
    for factor in (0, 1):  # what serves twice makes up for nothing: a query, say, that is added to the answer
        found, met = _made_up(met, upstream, factor)
        yield from found
    yield from (Lost(scale.formula, op) for scale, op in met)


def _made_up(
    met: Sequence[tuple[Scale, Op]], upstream: Upstream, factor: int
) -> tuple[list[Rescale], list[tuple[Scale, Op]]]:
    """The weights that make up for factors by one side of the products before them, and the factors that none do."""
    factors: list[_Factor] = []
    lost: list[tuple[Scale, Op]] = []
    for scale, op in met:
        sites, path = upstream.scaling(op, factor)
        if sites is None:
            lost.append((scale, op))
            continue
        power = -1 if op.name.startswith("div") else 1
        _add(factors, Rescale(scale.formula, scale.value, power, sites), scale, op, path)
    found = []
    for each in factors:
        if upstream.only_on(each.path, each.rescale.sites):
            found.append(each.rescale)
        else:
            lost += each.met
    return found, lost


def _add(factors: list[_Factor], rescale: Rescale, scale: Scale, op: Op, path: Path) -> None:
    """Add a factor, or a further pass of one: the same weights make up for it there. What multiplies by the same number
    once more lies on the way of the first."""
    for factor in factors:
        if factor.rescale.key == rescale.key and all(each.index not in path for _, each in factor.met):
            factor.met.append((scale, op))
            factor.path |= path
            return
    factors.append(_Factor(rescale, [(scale, op)], path))


def _holds(op: Op, scale: Scale) -> bool:
    if scale.tensor is not None:
        return scale.tensor in op.inputs
    return any(isinstance(a, int | float) and math.isclose(a, scale.value) for a in op.args)
