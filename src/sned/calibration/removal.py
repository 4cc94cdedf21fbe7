"""Structured optimal brain surgery: one unit after another goes, the one that the rest can best make up for.

For `y = W x` with `H = E[x xᵀ] + r I`, removing the entries `u` and repairing the rest costs
`trace(W_u (H⁻¹_uu)⁻¹ W_uᵀ)`; the repaired weights and the inverse without `u` follow from a block
elimination:

    W  ← W - W_u (H⁻¹_uu)⁻¹ H⁻¹_u:          H⁻¹ ← H⁻¹ - H⁻¹_:u (H⁻¹_uu)⁻¹ H⁻¹_u:

The same holds of the columns of some units alone, so a batch can be drawn one by one on a small problem before the
large one follows in one step.

Reference: Hassibi and Stork, Optimal Brain Surgeon, 1993; Frantar et al., Optimal Brain Compression, 2022,
equation 6, with blocks of entries that all outputs lose together in place of single weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sned.calibration.solver import RIDGE, FloatArray, factor, times
from sned.graph.ir import IntArray

_ROUNDS = 16
"""Batches in which the units that are left would go, all of one size. In each, the units to go are drawn one after the
other from the twice as many that are cheapest, and the rest answers for all of them at once: much the same choice for
a fraction of the memory traffic. Up to twice as many units a cell, and each batch is a single round."""

_WIDE = 1024
"""Entries of a patch from which on several threads pay, and single precision: what is inverted is kept by its
ridge from being nearly singular (entries of the inverse came out within 4e-7 at 4,608)."""

_SQUEEZE = 0.85
"""Share of stored units still there below which the others' zeros are squeezed out."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One consumer as a removal sees it.

    Attributes:
        second: `[width, width]`, `E[x xᵀ]`.
        weight: `[outputs, width]`.
        rows: `[units, k]`, which entries of `x` go with each unit.
        share: how much the error of this consumer, relative to its own energy, counts beside that of others,
            >= 0.
        mean: `[width]`, `E[x]`, where something puts the mean of the outputs right, so that only what lies around it
            counts.
    """

    second: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    rows: IntArray = field(repr=False)
    share: float = 1.0
    mean: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Removal:
    """One unit removed after the other.

    Attributes:
        order: `[units]`, the units in the order in which they go.
        error: `[units + 1]`, the error left after best repair when the first `k` of `order` are gone,
            relative to the energy `trace(W H Wᵀ)`, summed over the problems by their shares: 0 at 0,
            non-decreasing.
    """

    order: IntArray
    error: FloatArray


class _Elimination:
    """The state of one problem: repaired weights, and the inverse over the entries that remain.

    Entries are kept unit by unit, those of no unit behind them. Removed units leave zeros, which are squeezed out from
    time to time: every time would copy the inverse more often than it is worth.

    Args:
        weight: `[outputs, width]`, the entries of each unit side by side.
        inverse: `[width, width]`, in the same order.
        units: `[units]`, their numbers.
        k: entries of a unit.
        scale: what a loss is multiplied by.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, units: IntArray, k: int, scale: float) -> None:
        self._weight, self._inverse, self._scale, self._k = weight, inverse, scale, k
        self._stored = units
        self._alive = np.ones(len(units), bool)

    @classmethod
    def of(cls, problem: Problem, ridge: float) -> _Elimination:
        """Nothing removed yet."""
        rows = torch.from_numpy(np.ascontiguousarray(problem.rows))
        entries = torch.arange(problem.second.shape[0])
        order = torch.cat([rows.flatten(), entries[~torch.isin(entries, rows.flatten())]])
        second = problem.second.detach()[order[:, None], order]
        mean = None if problem.mean is None else problem.mean.detach().double()[order]
        weight = problem.weight.detach().double()[:, order]
        energy = float((times(weight, second, mean) * weight).sum())
        scale = problem.share / energy if energy > 0 else 0.0
        lower, _ = factor(second, ridge, mean=mean)
        del second  # wide ones take hundreds of megabytes
        if len(lower) >= _WIDE:
            weight, lower = weight.float(), lower.float()
        inverse = torch.cholesky_inverse(lower)
        return cls(weight, inverse, np.arange(len(rows)), rows.shape[1], scale)

    def only(self, units: IntArray) -> _Few:
        """The same problem as some of its units see it."""
        at = self._entries(units)
        weight = self._weight[:, at].double()
        return _Few(
            (weight.T @ weight).numpy(), self._inverse[at][:, at].double().numpy(), self._k, self._scale
        )

    def losses(self) -> FloatArray:
        """What each unit that remains would cost, in the order of their numbers."""
        k, stored = self._k, len(self._stored)
        square = self._inverse[: stored * k, : stored * k].reshape(stored, k, stored, k)
        alive = torch.from_numpy(self._alive)
        diagonal = square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[alive]
        own = self._weight[:, : stored * k].reshape(-1, stored, k).permute(1, 2, 0)[alive]
        gram, diagonal = (own @ own.mT).double(), diagonal.double()
        told = gram / diagonal if k == 1 else torch.linalg.solve(diagonal, gram)
        losses: FloatArray = told.diagonal(dim1=1, dim2=2).sum(-1).numpy()
        return self._scale * losses

    def remove(self, units: IntArray) -> None:
        """Take out units, by their numbers, and let the rest answer for them."""
        gone = self._entries(units)
        own = self._inverse[gone]
        across = torch.linalg.solve(own[:, gone], own)
        self._weight.addmm_(self._weight[:, gone], across, alpha=-1)
        self._inverse.addmm_(own.mT, across, alpha=-1)
        self._alive[np.isin(self._stored, units)] = False
        if self._alive.mean() < _SQUEEZE:
            self._squeeze()

    def _entries(self, units: IntArray) -> Tensor:
        places = np.searchsorted(self._stored, units)
        return torch.from_numpy((places[:, None] * self._k + np.arange(self._k)).ravel())

    def _squeeze(self) -> None:
        """Drop the entries of the units that left; those of no unit stay."""
        fixed = self._weight.shape[1] - len(self._stored) * self._k
        kept = np.append(np.repeat(self._alive, self._k), np.ones(fixed, bool))
        where = torch.from_numpy(np.flatnonzero(kept))
        self._weight = self._weight[:, where]
        self._inverse = self._inverse[where][:, where]
        self._stored = self._stored[self._alive]
        self._alive = np.ones(len(self._stored), bool)


class _Few:
    """A problem as a few of its units see it: what the removal of each costs, and does to the others, is exact.

    Args:
        gram: `[few * k, few * k]`, `Wᵀ W` of their weights, all that a loss needs to know of them.
        inverse: of the same shape.
        k: entries of a unit.
        scale: what a loss is multiplied by.
    """

    def __init__(self, gram: FloatArray, inverse: FloatArray, k: int, scale: float) -> None:
        self._gram, self._inverse, self._k, self._scale = gram, inverse, k, scale

    def losses(self, places: IntArray) -> FloatArray:
        """What each of the units at `places` would cost."""
        own, gram = self._blocks(self._inverse, places), self._blocks(self._gram, places)
        told = gram / own if self._k == 1 else np.linalg.solve(own, gram)
        return np.asarray(self._scale * told.trace(axis1=1, axis2=2))

    def remove(self, place: int) -> None:
        """Take out the unit at a place, and let the rest answer for it."""
        unit = slice(place * self._k, (place + 1) * self._k)
        across = np.linalg.solve(self._inverse[unit, unit], self._inverse[unit])
        step = self._gram[:, unit] @ across
        self._gram += across.T @ (self._gram[unit, unit] @ across) - step - step.T
        self._inverse -= self._inverse[:, unit] @ across

    def _blocks(self, square: FloatArray, places: IntArray) -> FloatArray:
        few = len(square) // self._k
        return square.reshape(few, self._k, few, self._k)[places, :, places]


def greedy_removal(
    problems: Sequence[Problem], cells: IntArray | None = None, *, ridge: float = RIDGE
) -> Removal:
    """Remove one unit after another, each time the one whose loss the rest can best make up for.

    Args:
        problems: the consumers that read the units; all name the same units.
        cells: `[units]`, the cell of each unit. Each round takes one unit from every cell, so that any number
            of whole rounds keeps the cells equal. None: one cell.
        ridge: relative to the mean of the diagonal of each problem's moments.

    Returns:
        The order and the error after each removal; the ridge counts as energy of noise on every entry.
    """
    with _threads(max(len(problem.second) for problem in problems)):
        return _remove_all(problems, cells, ridge)


@contextmanager
def _threads(width: int) -> Iterator[None]:
    """Keep PyTorch's products on this thread where they are small: handing them on costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if width >= _WIDE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remove_all(problems: Sequence[Problem], cells: IntArray | None, ridge: float) -> Removal:
    units = len(problems[0].rows)
    cell = np.zeros(units, np.int64) if cells is None else np.asarray(cells, np.int64)
    states = [_Elimination.of(problem, ridge) for problem in problems]
    left = np.arange(units)
    order: list[int] = []
    costs: list[float] = []
    while len(left):
        rounds = max(1, len(left) // (int(cell.max()) + 1) // _ROUNDS)
        losses = sum((state.losses() for state in states), np.zeros(len(left)))
        near = _cheapest(losses, left, cell, 2 * rounds)
        taken, cost = _one_by_one([state.only(near) for state in states], near, cell, rounds)
        for state in states:
            state.remove(np.sort(taken))
        left = np.setdiff1d(left, taken)
        order += taken.tolist()
        costs += cost
    return Removal(np.array(order, np.int64), np.concatenate([[0.0], np.cumsum(costs)]))


def _cheapest(losses: FloatArray, left: IntArray, cell: IntArray, count: int) -> IntArray:
    """The `count` units of each cell with the smallest losses, sorted by number."""
    by_loss = np.argsort(losses, kind="stable")
    chosen = [by_loss[cell[left[by_loss]] == c][:count] for c in np.unique(cell)]
    return np.sort(left[np.concatenate(chosen)])


def _one_by_one(
    few: Sequence[_Few], units: IntArray, cell: IntArray, rounds: int
) -> tuple[IntArray, list[float]]:
    """The units that go in some rounds, each of which takes one from every cell, and what each costs."""
    left, gone, cost = np.arange(len(units)), [], []
    taken = np.zeros(int(cell.max()) + 1, np.int64)
    while len(left) and taken.min() < rounds:
        losses = sum((state.losses(left) for state in few), np.zeros(len(left)))
        best = int(np.where(taken[cell[units[left]]] == taken.min(), losses, np.inf).argmin())
        place = int(left[best])
        gone.append(place)
        cost.append(max(float(losses[best]), 0.0))
        taken[cell[units[place]]] += 1
        left = np.delete(left, best)
        for state in few:
            state.remove(place)
    return units[gone], cost
