"""The plan of least error within the limits, where a group's cost depends on what its neighbours keep.

The errors of groups add up, their costs do not (a convolution's cost is a product of two widths, and
latencies have stairs), so this is a knapsack over the true cost of whole plans: a greedy path from the whole
network downwards, each time the step of any width in any group that adds the least error for what it saves
(the discrete form of a Lagrangian); then exchanges, one group up and another down, until none helps. Since
these end where no pair of groups helps, the plans of the simpler searches are starts as well where they come
near; and where there are few plans in all, every one is looked at.

Reference: Everett, Generalized Lagrange multiplier method, 1963, for why the ratio of error to saving is what
must be equal across groups at the optimum; steps of several widths stand for the lower convex hull of each
error curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from sned.errors import BudgetError
from sned.graph.ir import IntArray
from sned.saliency.scores import FloatArray
from sned.search.global_ranking import ranked
from sned.search.moves import Moves, Neighbourhood
from sned.search.registry import searcher
from sned.search.space import Found, Problem, Space
from sned.search.uniform import equal_shares

FEW = 2**14
"""Plans of which every one is looked at, which takes no longer than a search among more."""

NEAR = 2.0
"""Times the least error so far that another start may have: from further away exchanges take long, and end no lower."""

EXCHANGES = 400
"""Rounds of exchange at most; each lowers the error, so most searches end long before."""

VERIFIED = 192
"""Promising exchanges of which the true cost is worked out in each round."""

TOLERANCE = 1e-12
"""Relative; what counts as less error, so that rounding cannot keep exchanges going."""


@searcher("knapsack", "the least error within the limits, by true cost of the whole plan")
def knapsack(problem: Problem) -> Found:
    """Minimise the sum of the groups' errors within all limits.

    Raises:
        BudgetError: the limits cannot be met; the text says the smallest reachable and by which plan.
    """
    space = Space(problem)
    steps = Neighbourhood(space)
    *_, last = path(space, steps, space.dense)
    return space.finish("knapsack", best(space, steps, last))


def path(space: Space, steps: Neighbourhood, levels: IntArray) -> Iterator[IntArray]:
    """Ever smaller choices, from the given one to the first within the limits.

    Raises:
        BudgetError: not even the smallest is.
    """
    cost = space.costs(levels[None])[0]
    # What one unit of each limited cost is worth, so that several limits can be added.
    excess = np.maximum(cost - space.bounds, 0.0)
    scale = np.where(excess > 0, excess, 1.0)
    yield levels
    while not space.fits(cost[None])[0]:
        moves = steps.down(levels, coarse=True)
        if not len(moves):
            raise space.unreachable(levels)
        costs = space.costs(moves.applied(levels))
        best = _best(space, moves, (cost - costs) / scale, (cost - space.bounds) / scale)
        levels, cost = moves.applied(levels)[best], costs[best]
        yield levels


def _best(space: Space, moves: Moves, saved: FloatArray, excess: FloatArray) -> int:
    """The move with the least error for what it saves, of what there still is to save.

    Savings beyond the limit are worth nothing; what a move adds to another limited cost counts against it.
    """
    worth = np.where(excess > 0, np.minimum(saved, np.maximum(excess, 0.0)), np.minimum(saved, 0.0)).sum(
        axis=1
    )
    useful = worth > 1e-12
    if not useful.any():
        # A stretch on which no single group saves anything: the whole must come down before costs do.
        return int(np.lexsort((moves.group, moves.error))[0])
    ratio = np.where(useful, moves.error / np.where(useful, worth, 1.0), np.inf)
    # Among equals (units that cost no error), the one that saves most.
    return int(np.lexsort((-worth, ratio))[0])


def best(space: Space, steps: Neighbourhood, levels: IntArray) -> IntArray:
    """A choice of no more error than the given one, which fits: the least there is where there are few."""
    if np.prod(space.tops + 1.0) <= FEW:
        return _least(space)
    chosen = refined(space, steps, levels)
    for start in _other_starts(space):
        if space.errors(start) <= NEAR * space.errors(chosen):
            chosen = min(chosen, refined(space, steps, start), key=space.errors)
    return chosen


def _least(space: Space) -> IntArray:
    """The least error of all plans that fit; among equals, the one that costs least."""
    plans = np.array(list(np.ndindex(*(space.tops + 1))), np.int64)
    costs = space.costs(plans)
    fits = np.flatnonzero(space.fits(costs))
    share = (costs[fits] / np.maximum(space.bounds, 1e-30)).sum(axis=1)
    return np.asarray(plans[fits[np.lexsort((share, space.errors(plans[fits])))[0]]])


def _other_starts(space: Space) -> Iterator[IntArray]:
    """What the simpler searches choose; nothing of one on whose line no plan fits."""
    for line in (equal_shares, ranked):
        with suppress(BudgetError):
            yield line(space)


def refined(space: Space, steps: Neighbourhood, levels: IntArray) -> IntArray:
    """A choice of no more error that fits: units come back where there is room, groups exchange some."""
    levels = _filled(space, steps, levels)
    for _ in range(EXCHANGES):
        better = _exchange(space, steps, levels)
        if better is None:
            return levels
        levels = _filled(space, steps, better)
    return levels


def _filled(space: Space, steps: Neighbourhood, levels: IntArray) -> IntArray:
    """Take units back, the most error for the least cost first, as long as the limits hold."""
    while True:
        moves = steps.up(levels)
        moves = moves.only(np.flatnonzero(moves.error < -TOLERANCE * _size(space, levels)))
        if not len(moves):
            return levels
        choices = moves.applied(levels)
        costs = space.costs(choices)
        fits = space.fits(costs)
        if not fits.any():
            return levels
        added = ((costs - space.costs(levels[None])) / np.maximum(space.bounds, 1e-30)).max(
            axis=1, initial=0.0
        )
        gain = np.where(fits, -moves.error / np.maximum(added, 1e-9), -np.inf)
        levels = choices[int(np.argmax(gain))]


def _exchange(space: Space, steps: Neighbourhood, levels: IntArray) -> IntArray | None:
    """The best of moving one group up and another down; None where no such exchange helps.

    Which pairs are worth a look is told by adding up what each half changes; the true cost decides.
    """
    up, down = steps.up(levels), steps.down(levels)
    if not len(up) or not len(down):
        return None
    now = space.costs(levels[None])
    both = space.costs(np.concatenate([up.applied(levels), down.applied(levels)])) - now
    rises, falls = both[: len(up)], both[len(up) :]
    gain = -(up.error[:, None] + down.error[None])
    room = space.bounds - now[0]
    fits = ((rises[:, None] + falls[None]) <= room + 0.02 * np.abs(space.bounds)).all(axis=2)
    apart = up.group[:, None] != down.group[None]
    gain = np.where(fits & apart & (gain > TOLERANCE * _size(space, levels)), gain, -np.inf)
    flat = gain.ravel()
    order = np.argpartition(-flat, min(VERIFIED, flat.size - 1))[:VERIFIED]
    order = order[np.argsort(-flat[order], kind="stable")]
    order = order[np.isfinite(flat[order])]
    if not len(order):
        return None
    first, second = np.divmod(order, len(down))
    choices = up.only(first).applied(levels)
    choices[np.arange(len(order)), down.group[second]] = down.level[second]
    good = np.flatnonzero(space.fits(space.costs(choices)))
    return choices[good[0]] if len(good) else None


def _size(space: Space, levels: IntArray) -> float:
    return float(space.errors(levels[None])[0]) + 1e-300
