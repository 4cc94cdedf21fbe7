"""Steps from one choice to its neighbours: how far one group goes up or down its ladder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sned.graph.ir import IntArray
from sned.saliency.scores import FloatArray
from sned.search.space import Space

STRIDES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Rungs at a time: all the small ones, then ever wider, so that a flat stretch of a cost is jumped in one
go."""

STAIRS = (8, 16, 32)
"""Kernels like widths that are multiples of these: the next of each is always among the steps."""

FINEST = 48
"""The path from the whole network to the smallest takes steps of at least this fraction of a group's
ladder."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Single-group steps from one choice, `[M]` of each.

    Attributes:
        group: which group moves.
        level: where it goes.
        error: what that adds to the error (negative where units come back).
    """

    group: IntArray
    level: IntArray
    error: FloatArray

    def __len__(self) -> int:
        return len(self.group)

    def applied(self, levels: IntArray) -> IntArray:
        """`[M, groups]`: the choices after each."""
        result = np.repeat(levels[None], len(self), axis=0)
        result[np.arange(len(self)), self.group] = self.level
        return result

    def only(self, chosen: IntArray) -> Moves:
        """Some of the moves."""
        return Moves(self.group[chosen], self.level[chosen], self.error[chosen])


class Neighbourhood:
    """All steps of a space, worked out once for every rung."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._down = [_steps(space, g, down=True) for g in range(len(space.groups))]
        self._up = [_steps(space, g, down=False) for g in range(len(space.groups))]

    def down(self, levels: IntArray, *, coarse: bool = False) -> Moves:
        """Steps that keep fewer units; `coarse` leaves out the smallest of large groups."""
        least = np.maximum(1, self._space.tops // FINEST) if coarse else np.ones_like(levels)
        return self._moves(levels, self._down, least)

    def up(self, levels: IntArray) -> Moves:
        """Steps that keep more units."""
        return self._moves(levels, self._up, np.ones_like(levels))

    def _moves(self, levels: IntArray, steps: list[list[IntArray]], least: IntArray) -> Moves:
        space = self._space
        reached = [steps[g][level] for g, level in enumerate(levels.tolist())]
        group = np.repeat(space.rows, [len(r) for r in reached])
        level = np.concatenate(reached) if reached else np.zeros(0, np.int64)
        # The last rung is always in reach, however near.
        wide = (abs(level - levels[group]) >= least[group]) | (level == space.tops[group])
        group, level = group[wide], level[wide]
        return Moves(group, level, space.error[group, level] - space.error[group, levels[group]])


def _steps(space: Space, group: int, *, down: bool) -> list[IntArray]:
    """For every rung of a ladder, the rungs one step away."""
    top = int(space.tops[group])
    kept = space.kept[group, : top + 1]
    strides = np.array(STRIDES)
    result = []
    for level in range(top + 1):
        reached = level + strides if down else level - strides
        stairs = [_stair(kept, level, width, down=down) for width in STAIRS]
        ends = [top if down else 0]
        found = np.unique(np.concatenate([reached, stairs, ends]))
        ahead = (found > level) if down else (found < level)
        result.append(found[ahead & (found >= 0) & (found <= top)])
    return result


def _stair(kept: IntArray, level: int, width: int, *, down: bool) -> int:
    """The nearest rung below or above that keeps a multiple of `width`; itself where there is none."""
    on = np.flatnonzero(kept % width == 0)
    ahead = on[on > level] if down else on[on < level]
    return int((ahead[0] if down else ahead[-1]) if len(ahead) else level)
