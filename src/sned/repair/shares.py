"""How many entries of each weight may stay: more where the network's answers feel their loss, fewer where they do not.

Each weight alone is thinned to a few densities and mended on dense moments; how far the answers move then follows from
their curvature (`calibration/curvature.py`) and is taken to add up over weights. Between the points the logarithm of
that is linear in the logarithm of the density; above the highest it falls as the cube of what is removed (the sum of
squares of the smallest entries of a distribution that is flat about zero). The least sum within the entries allowed
gives every weight the same gain an entry, which a bisection finds.

Reference: Everett, Generalized Lagrange multiplier method, 1963.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sned.calibration import Calibration, Consumer
from sned.calibration.consumers import layout
from sned.calibration.curvature import HOPELESS, Change, affordable, divergences
from sned.graph.ir import Graph
from sned.graph.replay import State
from sned.graph.sizes import Sizes
from sned.progress import SILENT, Progress
from sned.repair.following import followings
from sned.repair.targets import free_parameter

POINTS = (0.5, 1.0, 1.5)
"""Powers of the density asked for at which each weight is tried."""

GRID = 200
"""Densities, in equal ratios, that a weight may have."""

HALVINGS = 60
NOTHING = 1e-12
"""A divergence below this is rounding; it stands in for none, so that logarithms exist."""

FloatArray = NDArray[np.float64]
Thin = Callable[[Consumer, Tensor, Tensor, float], Tensor]
"""(consumer, weights `[outputs, width]`, moments `[width, width]`, density) -> the weights with zeros."""


def densities(
    graph: Graph,
    state: State,
    calibration: Calibration,
    weights: Collection[str],
    thin: Thin,
    density: float,
    *,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """The share of each weight that stays, `density` of all of them together.

    Args:
        graph: of the network.
        state: its parameters and buffers by name.
        calibration: of this very graph.
        weights: names of those that are thinned, each read by one consumer.
        thin: what puts zeros into them.
        density: share that stays, in (0, 1); of each weight, where PyTorch cannot derive the answers.
        progress: shown while it runs.
    """
    points = tuple(density**power for power in POINTS)
    chosen = [consumer for consumer in calibration.consumers if consumer.weight in weights]
    mended, count = _Mended(graph, state, calibration, thin), affordable(graph, calibration, len(points))
    tried = [(consumer, point) for consumer in chosen for point in points]
    with progress.task("weighing layers", total=len(tried) + count) as advance:
        changes = ({consumer.op: mended(consumer, point)} for consumer, point in tried)
        moved = divergences(graph, state, calibration, changes, count, advance=advance)
    if moved is None:
        return dict.fromkeys(weights, density)
    sizes = np.array([state[consumer.weight].numel() for consumer in chosen], np.float64)
    kept = allotted(moved.reshape(len(chosen), len(points)), points, sizes, density)
    return {consumer.weight: float(share) for consumer, share in zip(chosen, kept, strict=True)}


def allotted(moved: FloatArray, points: Sequence[float], sizes: FloatArray, density: float) -> FloatArray:
    """The densities `[W]` by which answers move least in all: the same for all where nothing tells weights apart.

    Args:
        moved: `[W, P]`, at least 0: how far answers move when one weight alone is thinned to each of the points.
        points: densities, falling, in (0, 1).
        sizes: `[W]`, entries.
        density: of all together.
    """
    grid = np.geomspace(density**2, 1.0, GRID)
    table = np.array([_curve(row, points, grid) for row in moved])

    def chosen(price: float) -> NDArray[np.intp]:
        """What each weight keeps where an entry of the largest costs so much."""
        return np.asarray((table + np.exp(price) * (sizes / sizes.max())[:, None] * grid).argmin(axis=1))

    low, high = np.log(NOTHING), np.log(max(float(table.max()), NOTHING) / grid[0]) + 20
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = sizes @ grid[chosen(middle)] <= density * sizes.sum()
        low, high = (low, middle) if enough else (middle, high)
    kept = grid[chosen(high)]
    return np.asarray(1 - (1 - kept) * (1 - density) * sizes.sum() / (sizes @ (1 - kept)))


def _curve(moved: FloatArray, points: Sequence[float], grid: FloatArray) -> FloatArray:
    known = np.maximum.accumulate(np.clip(moved, NOTHING, HOPELESS))
    x, y, at = -np.log(np.array(points)), np.log(known), -np.log(grid)
    slope = max((y[-1] - y[-2]) / (x[-1] - x[-2]), 1.0)
    inside = np.exp(np.where(at > x[-1], y[-1] + slope * (at - x[-1]), np.interp(at, x, y)))
    return np.where(at < x[0], known[0] * ((1 - grid) / (1 - points[0])) ** 3, inside)


class _Mended:
    """One consumer alone thinned on dense moments, with the mean of its output put right where something can."""

    def __init__(self, graph: Graph, state: State, calibration: Calibration, thin: Thin) -> None:
        self._state, self._thin, self._moments = state, thin, calibration.moments
        self._following = followings(graph, calibration.consumers)
        self._graph = graph
        self._sizes = Sizes(graph, graph.coupling.keep({}))

    def __call__(self, consumer: Consumer, density: float) -> Change:
        weight, moment = self._state[consumer.weight].detach(), self._moments[consumer.op]
        assert moment.second is not None
        free = free_parameter(consumer, self._following[consumer.op])
        index = layout(self._graph, self._sizes, consumer).long().to(weight.device)
        flat, shifts = weight.flatten().clone(), []
        for part, place in enumerate(index):
            own, mean = flat[place].double(), moment.mean[part].double()
            second = moment.second[part].double()
            thin = self._thin(consumer, own, second - torch.outer(mean, mean) if free else second, density)
            shifts.append((own - thin) @ mean)
            flat[place] = thin.to(flat.dtype)
        shift = torch.cat(shifts).to(flat.dtype) if free else None
        return Change(flat.reshape(weight.shape), shift)
