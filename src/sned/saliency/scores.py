"""In which order the units of each group should go, and what each step of the way costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sned.errors import PlanError
from sned.graph.ir import Graph, Group, IntArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a criterion says of every group of one graph.

    Attributes:
        criterion: its name, as in the registry.
        order: `{group: int64 [size]}`, units from least to most important; the cells of a group take turns,
            so that the first `k * cell_count` units are `k` of every cell.
        error: `{group: float64 [size + 1]}`; `error[k]` is what is lost when the first `k` of `order` are
            gone: 0 at 0, finite, never falling. Its unit is the criterion's own, the same for all groups.
        notes: what a reader should know: groups on which the criterion could not be used, and what was used
            instead.
    """

    criterion: str
    order: Mapping[str, IntArray]
    error: Mapping[str, FloatArray]
    notes: tuple[str, ...] = ()

    def marginal(self, group: str) -> FloatArray:
        """`[size]`: what the loss of each further unit of `order` adds."""
        return np.diff(self.error[group])


def from_importance(
    criterion: str, graph: Graph, importance: Mapping[str, FloatArray], notes: tuple[str, ...] = ()
) -> Scores:
    """Scores of a criterion that gives each unit a number of its own, whatever else is removed.

    Args:
        criterion: its name.
        graph: whose groups they are.
        importance: `{group: [size]}`, at least 0, larger means more important; comparable between groups.
        notes: see `Scores`.
    """
    order = {group.name: interleaved(group, importance[group.name]) for group in graph.groups}
    error = {name: curve(importance[name][units]) for name, units in order.items()}
    return Scores(criterion, order, error, notes)


def interleaved(group: Group, rank: FloatArray) -> IntArray:
    """Units from lowest to highest `rank` `[size]`, the cells taking turns round by round."""
    by_rank = np.argsort(rank, kind="stable")
    turn = np.empty(group.size, np.int64)
    for cell in range(group.cell_count):
        members = by_rank[group.cells[by_rank] == cell]
        turn[members] = np.arange(len(members))
    return by_rank[np.argsort(turn[by_rank], kind="stable")]


def curve(steps: FloatArray) -> FloatArray:
    """Cumulative error `[size + 1]` of steps `[size]` of at least 0, starting at 0."""
    return np.concatenate([[0.0], np.cumsum(np.maximum(steps, 0.0))])


def least_important(group: Group, order: IntArray, count: int) -> IntArray:
    """The `count` units of `order` `[size]` that should go first, equally many of every cell, sorted.

    Raises:
        PlanError: `count` is not a multiple of the group's cells, or leaves nothing.
    """
    cells = group.cell_count
    if count % cells or not 0 <= count < group.size:
        raise PlanError(
            f"Of {group.name!r} a multiple of {cells} units can go, from 0 to {group.size - cells}, "
            f"got {count}."
        )
    chosen = [order[group.cells[order] == cell][: count // cells] for cell in range(cells)]
    return np.sort(np.concatenate(chosen))


def mean_one(importance: FloatArray) -> FloatArray:
    """Scaled to a mean of 1, so that layers compare; all ones where there is nothing to tell units apart."""
    mean = float(importance.mean())
    return importance / mean if mean > 0 else np.ones_like(importance)
