"""Solve what the flow noted: which labels are one channel, which leave together, and the groups that they form.

Three levels, each a connected-components problem over the one below:

- an *atom* is a set of labels that are the same channel;
- a *unit* is a set of atoms that leave together; a unit that holds the label of a slab also takes all that lies on it;
- a *group* is a set of units with one signature: as many positions on the same axes of the same parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sned.graph.components import components, indicator, matrix, twin_slabs
from sned.graph.ir import BoolArray, Frozen, Group, IntArray, Slices, Term
from sned.graph.labels import Box, Boxes, covering
from sned.graph.relations import Cells, Relations, Why

CUT = Why("slice", "", "cut at a number in the code")
UNREACHED = Why("slice", "", "no traced pass reads it")
UNEQUAL = Why("cells", "", "its parts must lose equally many, but they are not alike")


@dataclass(frozen=True)
class Axis:
    """The atoms along one axis of a tensor: `atoms` `[rows, size]`, one row except on the free axis of a rectangle.

    There rows keep equally many positions unless one leaves whole, with a slab whose atom is among `slabs`; that
    shortens another axis.
    """

    atoms: IntArray
    slabs: IntArray


@dataclass(frozen=True)
class Position:
    """The labels of one axis of one parameter; `output` as in `Slices`."""

    parameter: str
    axis: int
    labels: IntArray
    output: bool


class Coupling:
    """Atoms, units and groups of a graph, and what any choice of units does to every axis."""

    def __init__(
        self,
        relations: Relations,
        positions: Sequence[Position],
        boxes: Mapping[int, Boxes],
        order: Mapping[str, int],
        reached: BoolArray,
    ) -> None:
        self._relations = relations
        self._positions = positions
        self._order = order
        self._atom = components(relations.count, [*relations.same, *twin_slabs(relations)])
        self._atoms = int(self._atom.max()) + 1 if relations.count else 0
        self._reached = np.zeros(self._atoms, bool)
        self._reached[self._atom[reached]] = True
        self._frozen_atoms, self._reason = self._freeze()
        self._edges = self._slab_edges()
        self._cells = self._cell_rows()
        self._solve()
        self._boxes = boxes
        self._axes: dict[tuple[int, int], Axis | None] = {}

    # --- solving -------------------------------------------------------------------------------------------------

    def _freeze(self) -> tuple[BoolArray, IntArray]:
        """Which atoms stay, and the first event that fixed each: its number, or one behind them."""
        events = self._relations.frozen
        reason = np.where(self._reached, len(events) + 2, len(events) + 1)
        for number in range(len(events) - 1, -1, -1):
            reason[self._atom[events[number][0]]] = number
        return reason < len(events), reason

    def _slab_edges(self) -> sparse.csr_matrix:
        """`[atoms, atoms]`: the atom of a slab to each atom that lies on it."""
        pairs = [(self._atom[a], self._atom[b]) for a, b in self._relations.slabs]
        return matrix(pairs, (self._atoms, self._atoms))

    def _cell_rows(self) -> list[Cells]:
        """The rows that must lose equally many, as atoms, without repetition."""
        found: dict[tuple[tuple[int, ...], bytes, bytes], Cells] = {}
        for cells in self._relations.cells:
            rows = self._atom[cells.rows]
            if len(rows) > 1 and bool((rows != rows[0]).any()):
                owners = self._atom[cells.owners]
                key = (rows.shape, rows.tobytes(), owners.tobytes())
                found[key] = Cells(rows, owners, _both(cells.instead, found.get(key, cells).instead))
        return list(found.values())

    def _solve(self) -> None:
        """Ties are added until every row of a cell constraint is made alike; each round only adds ties."""
        ties = [(self._atom[a], self._atom[b]) for a, b in self._relations.together]
        while True:
            self._unit = components(self._atoms, ties)
            self._units = int(self._unit.max()) + 1 if self._atoms else 0
            self._covers = self._closure()
            self._signature = self._signatures()
            ties += (more := self._uneven())
            if not more and not self._loosened():
                break
        self.groups = self._make_groups()

    def _closure(self) -> sparse.csr_matrix:
        """`[units, atoms]`: every atom that leaves with a unit, slabs taking along what lies on them."""
        own = np.arange(self._atoms)
        covers = matrix([(self._unit, own)], (self._units, self._atoms))
        front = covers
        while front.nnz:
            front = (front @ self._edges).astype(bool).astype(np.int64)
            front = (front - front.multiply(covers)).tocsr()
            front.eliminate_zeros()
            covers = (covers + front).tocsr()
        return covers

    def _signatures(self) -> IntArray:
        """A number for each unit: units of one number form a group; -1 for those that stay or own no parameter."""
        stays = np.asarray(self._covers @ self._frozen_atoms.astype(np.int64)).ravel() > 0
        stays |= np.asarray(self._covers @ self._reached.astype(np.int64)).ravel() == 0
        stays[self._lopsided([cells for cells in self._cells if cells.instead is None])[0]] = True
        rng = np.random.default_rng(0)
        weights = rng.integers(1, 2**62, (2, len(self._positions)), dtype=np.int64)
        each = np.diff(self._bounds)
        alone, covered = np.zeros((2, self._atoms), np.int64)
        np.add.at(covered, self._line, np.repeat(weights[0], each))
        np.add.at(alone, self._line, np.repeat(weights[1], each))
        hashed = self._covers @ covered
        np.add.at(hashed, self._unit, alone)
        positions = self._covers @ np.bincount(self._line, minlength=self._atoms)
        _, signature = np.unique(hashed, return_inverse=True)
        return np.where(stays | (positions == 0), -1, signature)

    def _lopsided(self, constraints: Sequence[Cells]) -> tuple[IntArray, IntArray]:
        """Units whose slabs would take unequal shares of rows that must lose equally many, each with the number of such
        a constraint."""
        slabbed = np.flatnonzero(
            np.diff(self._covers.indptr) > np.bincount(self._unit, minlength=self._units)
        )
        if not slabbed.size or not constraints:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        covers = self._covers[slabbed].astype(np.int64)
        rows = [cells.rows for cells in constraints]
        owners = [cells.owners for cells in constraints]
        taken = (covers @ indicator(rows, self._atoms)).tocoo()
        gone = (covers @ indicator(owners, self._atoms)).tocoo()
        constraint = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        total = np.array([len(r) for r in rows])
        width = len(constraint)
        vanished = np.unique(gone.row * width + gone.col)
        alive = ~np.isin(taken.row * width + taken.col, vanished)
        keys, index = np.unique(
            taken.row[alive] * len(rows) + constraint[taken.col[alive]], return_inverse=True
        )
        values = taken.data[alive]
        least, most = np.full(len(keys), np.iinfo(np.int64).max), np.zeros(len(keys), np.int64)
        np.minimum.at(least, index, values)
        np.maximum.at(most, index, values)
        there = np.bincount(index, minlength=len(keys))
        away = np.bincount(
            np.searchsorted(keys, key := (vanished // width) * len(rows) + constraint[vanished % width])[
                np.isin(key, keys)
            ],
            minlength=len(keys),
        )
        uneven = (least != most) | (there + away != total[keys % len(rows)])
        units, numbers = np.divmod(keys[uneven], len(rows))
        return slabbed[units], numbers

    def _uneven(self) -> list[tuple[IntArray, IntArray]]:
        """Ties for the cell constraints whose rows are not made of the same groups."""
        ties = []
        for cells in (held.rows for held in self._cells if held.instead is None and self._unlike(held)):
            units = self._unit[cells]
            ties += [_paired(cells[0], units[0], cells[i], units[i]) for i in range(1, len(cells))]
        return ties

    def _unlike(self, cells: Cells) -> bool:
        """Whether some rows are not made of the same groups, nor of the same units."""
        units = self._unit[cells.rows]
        made = np.sort(self._signature[units], axis=1)
        return bool((made != made[0]).any()) and bool((units != units[0]).any())

    def _loosened(self) -> bool:
        """Let go of loose rows that are not alike, too short to lose anything, or taken unequally by a slab; whether
        there were any."""
        loose = [cells for cells in self._cells if cells.instead is not None]
        units, numbers = self._lopsided(loose)
        taken = set(numbers[self._signature[units] >= 0].tolist())
        gone = [
            cells
            for number, cells in enumerate(loose)
            if cells.rows.shape[1] == 1 or number in taken or self._unlike(cells)
        ]
        for guards in (self._atom[cells.instead] for cells in gone):
            self._frozen_atoms[guards] = True
            self._reason[guards] = np.minimum(self._reason[guards], len(self._relations.frozen))
        self._cells = [cells for cells in self._cells if not any(cells is each for each in gone)]
        return bool(gone)

    def _cell_hashes(self) -> NDArray[np.int64]:
        """For each unit a number that tells how much of it lies in which rows of which constraints."""
        hashes = np.zeros(self._units, np.int64)
        rng = np.random.default_rng(1)
        for cells in (held.rows for held in self._cells):
            units = self._unit[cells]
            if not bool((units != units[0]).any()):
                continue
            rows = np.repeat(np.arange(len(cells)), cells.shape[1])
            weights = rng.integers(1, 2**62, len(cells), dtype=np.int64)
            np.add.at(hashes, units.ravel(), weights[rows])
        return hashes

    def _make_groups(self) -> tuple[Group, ...]:
        hashes = self._cell_hashes()
        owned, line = self._owned(), np.empty(self._bounds[-1], np.int64)
        order = np.argsort(self._signature, kind="stable")
        start = int(np.searchsorted(self._signature[order], 0))
        members = np.split(order[start:], np.flatnonzero(np.diff(self._signature[order[start:]])) + 1)
        drafts = []
        for units in (m for m in members if m.size):
            _, cells, sizes = np.unique(hashes[units], return_inverse=True, return_counts=True)
            if len(set(sizes.tolist())) > 1:
                self._stay(units)
                continue
            first, end = owned.indptr[units], owned.indptr[units[0] + 1]
            lines = owned.indices[first[:, None] + np.arange(end - first[0])]
            if sizes[0] > 1 and _differ(lines.ravel(), line):
                drafts.append((units, cells, self._slices(lines)))
            else:
                self._stay(units)
        drafts.sort(
            key=lambda d: min((self._order[s.parameter], s.axis, int(s.positions.min())) for s in d[2])
        )
        self._group_of_unit = np.full(self._units, -1)
        self._members = [units for units, _, _ in drafts]
        names = _unique_names([_name(slices) for _, _, slices in drafts])
        spanned = np.zeros(self._atoms, np.int64)
        for ids in self._relations.inexact:
            spanned[self._atom[ids]] = 1
        inexact = self._covers.astype(np.int64) @ spanned > 0
        groups = []
        for index, ((units, cells, slices), name) in enumerate(zip(drafts, names, strict=True)):
            self._group_of_unit[units] = index
            groups.append(Group(index, name, len(units), slices, cells, not bool(inexact[units].any())))
        return tuple(groups)

    def _stay(self, units: IntArray) -> None:
        self._signature[units] = -1

    @cached_property
    def _bounds(self) -> IntArray:
        """Where each axis of a parameter begins when all their positions stand in one line."""
        return np.cumsum([0, *(p.labels.size for p in self._positions)])

    @cached_property
    def _line(self) -> IntArray:
        """The atom of every position in line."""
        labels = np.concatenate([np.zeros(0, np.int64), *(p.labels for p in self._positions)])
        return np.asarray(self._atom[labels])

    def _owned(self) -> sparse.csr_matrix:
        """`[units, positions in line]`: what leaves with each unit."""
        return self._covers.T.tocsr()[self._line].T.tocsr()

    def _slices(self, lines: IntArray) -> tuple[Slices, ...]:
        """Units of one signature own as many positions on the same axes: their rows `lines` have one layout."""
        edges = np.searchsorted(lines[0], self._bounds)
        return tuple(
            Slices(p.parameter, p.axis, lines[:, start:stop].astype(np.int64) - self._bounds[i], p.output)
            for i in np.flatnonzero(np.diff(edges))
            for p, start, stop in [(self._positions[i], edges[i], edges[i + 1])]
        )

    # --- answering -----------------------------------------------------------------------------------------------

    @cached_property
    def frozen(self) -> tuple[Frozen, ...]:
        """Outputs of weights that stay, with the first reason met."""
        covers = self._covers
        whys = [*(why for _, why in self._relations.frozen), CUT, UNREACHED, UNEQUAL]
        result: dict[tuple[str, str], Frozen] = {}
        for p in self._positions:
            units = self._unit[self._atom[p.labels]]
            stay = np.unique(units[self._signature[units] < 0])
            if not (p.output and stay.size):
                continue
            atoms = covers[stay].indices
            why = whys[int(self._reason[atoms].min()) if atoms.size else -1]
            name = p.parameter.rpartition(".")[0] or p.parameter
            result.setdefault((name, why.reason), Frozen(name, stay.size, why.op, why.module, why.reason))
        return tuple(result.values())

    def axis(self, tensor: int, axis: int) -> Axis | None:
        """The atoms along an axis, or None where nothing can go."""
        key = (tensor, axis)
        if key not in self._axes:
            box = covering(self._boxes.get(tensor, ()), axis)
            labels = _axis_labels(box, axis) if box is not None else None
            self._axes[key] = Axis(self._atom[labels[0]], self._atom[labels[1]]) if labels else None
        return self._axes[key]

    def keep(self, removed: Mapping[int, Sequence[int]]) -> Keep:
        """What remains when the given units of the given groups (by index) leave."""
        gone = np.zeros(self._units, bool)
        for group, units in removed.items():
            gone[self._members[group][np.asarray(units, np.int64)]] = True
        stays = np.ones(self._atoms, bool)
        stays[self._covers[np.flatnonzero(gone)].indices] = False
        return Keep(self, stays)

    def kept_positions(self, keep: Keep) -> dict[str, dict[int, IntArray]]:
        """For every axis of a parameter that loses something, the indices that stay."""
        there = np.flatnonzero(keep.stays[self._line])
        ends = np.searchsorted(there, self._bounds)
        kept: dict[str, dict[int, IntArray]] = {}
        for i in np.flatnonzero(np.diff(ends) < np.diff(self._bounds)):
            p, start = self._positions[i], self._bounds[i]
            kept.setdefault(p.parameter, {})[p.axis] = there[ends[i] : ends[i + 1]] - start
        return kept

    def terms(self, tensor: int, axis: int, size: int) -> tuple[Term, ...]:
        """See `Graph.terms`."""
        labels = self.axis(tensor, axis)
        if labels is None:
            return (Term(size, ()),)
        own = set(self._group_of_unit[self._unit[labels.slabs]].tolist())
        found: dict[tuple[int, ...], int] = {}
        for atom, count in zip(*np.unique(labels.atoms[0], return_counts=True), strict=True):
            groups = tuple(g for g in self._groups_of_atom[atom] if g not in own)
            found[groups] = found.get(groups, 0) + int(count)
        return tuple(Term(count, groups) for groups, count in sorted(found.items()))

    @cached_property
    def _groups_of_atom(self) -> list[tuple[int, ...]]:
        by_atom = self._covers.tocsc()
        groups = self._group_of_unit[by_atom.indices]
        bounds = by_atom.indptr.tolist()
        listed = groups.tolist()
        return [tuple(sorted({g for g in listed[a:b] if g >= 0})) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class Keep:
    """A choice of units as it reads on every axis: which atoms stay."""

    coupling: Coupling
    stays: BoolArray

    def mask(self, tensor: int, axis: int) -> BoolArray | None:
        """Which positions of an axis stay (of a rectangle: in the first row that is there); None where all do."""
        labels = self.coupling.axis(tensor, axis)
        if labels is None:
            return None
        rows = self.stays[labels.atoms]
        return np.asarray(rows[int(rows.any(axis=1).argmax())])


def _both(one: IntArray | None, other: IntArray | None) -> IntArray | None:
    """What stays instead of rows that are alike where two ask for them; one that is not loose asks for more."""
    return None if one is None or other is None else np.union1d(one, other)


def _paired(row: IntArray, units: IntArray, other: IntArray, others: IntArray) -> tuple[IntArray, IntArray]:
    """Atoms of two rows to tie, so that the rows lose equally many.

    Unit by unit, in the order in which they appear, where they take as many positions of the one as of the other; else
    position by position.
    """
    (_, first, count), (_, second, counts) = (
        np.unique(held, return_index=True, return_counts=True) for held in (units, others)
    )
    mine, theirs = np.argsort(first), np.argsort(second)
    if np.array_equal(count[mine], counts[theirs]):
        return row[first[mine]], other[second[theirs]]
    return row, other


def _axis_labels(box: Box, axis: int) -> tuple[IntArray, IntArray]:
    """Labels of an axis as rows, and those of the slabs that take whole rows away."""
    none = np.zeros(0, np.int64)
    if axis in box.slabs:
        return box.slabs[axis][None], none
    return box.rows(), np.concatenate([none, *box.slabs.values()])


def _differ(numbers: IntArray, scratch: IntArray) -> bool:
    """Whether no number comes twice: each is the last that was written to its place in `scratch`."""
    order = np.arange(len(numbers))
    scratch[numbers] = order
    return bool((scratch[numbers] == order).all())


def _name(slices: Sequence[Slices]) -> str:
    """The module whose outputs the units are: of the first weight that makes them, else the first parameter cut."""
    outputs = [s for s in slices if s.output]
    chosen = (outputs or list(slices))[0].parameter
    return chosen.rpartition(".")[0] or chosen


def _unique_names(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result
