"""Structured optimal brain surgery: one unit after another goes, the one that the rest can best make up for.

For `y = W x` with `H = E[x xᵀ] + r I`, removing the entries `u` and repairing the rest costs
`trace(W_u (H⁻¹_uu)⁻¹ W_uᵀ)`; the repaired weights and the inverse without `u` follow from a block
elimination:

    W  ← W - W_u (H⁻¹_uu)⁻¹ H⁻¹_u:          H⁻¹ ← H⁻¹ - H⁻¹_:u (H⁻¹_uu)⁻¹ H⁻¹_u:

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

from sned.calibration.solver import RIDGE, FloatArray, factor
from sned.graph.ir import IntArray

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
    """

    second: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    rows: IntArray = field(repr=False)
    share: float = 1.0


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

    Entries are kept unit by unit. A removed unit leaves zeros, which are squeezed out from time to time:
    every time would copy the inverse more often than it is worth.
    """

    def __init__(self, problem: Problem, ridge: float) -> None:
        rows = torch.from_numpy(np.ascontiguousarray(problem.rows))
        self._k = rows.shape[1]
        self._stored = np.arange(len(rows))
        self._alive = np.ones(len(rows), bool)
        entries = torch.arange(problem.second.shape[0])
        order = torch.cat([rows.flatten(), entries[~torch.isin(entries, rows.flatten())]])
        second = problem.second.detach().double()[order][:, order]
        self._weight = problem.weight.detach().double()[:, order]
        energy = float((self._weight @ second * self._weight).sum())
        self._scale = problem.share / energy if energy > 0 else 0.0
        self._inverse = torch.cholesky_inverse(factor(second, ridge)[0])

    def losses(self) -> FloatArray:
        """What each unit that remains would cost, in the order of their numbers."""
        k, stored = self._k, len(self._stored)
        square = self._inverse[: stored * k, : stored * k].reshape(stored, k, stored, k)
        alive = torch.from_numpy(self._alive)
        diagonal = square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[alive]
        own = self._weight[:, : stored * k].reshape(-1, stored, k).permute(1, 2, 0)[alive]
        losses: FloatArray = (own * torch.linalg.solve(diagonal, own)).sum((1, 2)).numpy()
        return self._scale * losses

    def remove(self, unit: int) -> None:
        """Take out a unit, by its number, and let the rest answer for it."""
        place = int(np.flatnonzero(self._stored == unit)[0])
        gone = slice(place * self._k, (place + 1) * self._k)
        across = torch.linalg.solve(self._inverse[gone, gone], self._inverse[gone])
        self._weight -= self._weight[:, gone] @ across
        self._inverse -= self._inverse[:, gone] @ across
        self._alive[place] = False
        if self._alive.mean() < _SQUEEZE:
            self._squeeze()

    def _squeeze(self) -> None:
        """Drop the entries of the units that left; those of no unit stay."""
        fixed = self._weight.shape[1] - len(self._stored) * self._k
        kept = np.append(np.repeat(self._alive, self._k), np.ones(fixed, bool))
        where = torch.from_numpy(np.flatnonzero(kept))
        self._weight = self._weight[:, where]
        self._inverse = self._inverse[where][:, where]
        self._stored = self._stored[self._alive]
        self._alive = np.ones(len(self._stored), bool)


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
    with one_thread():  # thousands of small products: handing them to other threads costs more than it saves
        return _remove_all(problems, cells, ridge)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch's products on this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remove_all(problems: Sequence[Problem], cells: IntArray | None, ridge: float) -> Removal:
    units = len(problems[0].rows)
    cell = np.zeros(units, np.int64) if cells is None else np.asarray(cells, np.int64)
    states = [_Elimination(problem, ridge) for problem in problems]
    left = np.arange(units)
    taken = np.zeros(int(cell.max()) + 1, np.int64)
    order, error = [], [0.0]
    while len(left):
        losses = np.sum([state.losses() for state in states], axis=0)
        losses = np.where(taken[cell[left]] == taken.min(), np.maximum(losses, 0.0), np.inf)
        place = int(losses.argmin())
        error.append(error[-1] + float(losses[place]))
        order.append(int(left[place]))
        taken[cell[left[place]]] += 1
        left = np.delete(left, place)
        for state in states:
            state.remove(order[-1])
    return Removal(np.array(order, np.int64), np.array(error))
