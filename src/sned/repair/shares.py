"""How many entries of each weight may stay: more where the network's answers feel their loss, fewer where they do not.

Each weight alone is thinned to a few densities, mended on dense moments, and the network is run from there on: how far
its answers move is taken to add up over weights. Between the points the logarithm of that is linear in the logarithm
of the density; above the highest it falls as the cube of what is removed (the sum of squares of the smallest entries
of a distribution that is flat about zero). The least sum within the entries allowed gives every weight the same
gain an entry, which a bisection finds.

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
from sned.calibration.curvature import HOPELESS
from sned.calibration.divergence import divergence
from sned.calibration.patches import inputs_within, macs_of
from sned.calibration.walk import Walk
from sned.graph.example import arguments, tensors_in
from sned.graph.ir import Graph
from sned.graph.replay import State
from sned.graph.sizes import Sizes
from sned.progress import SILENT, Progress
from sned.repair.following import followings
from sned.repair.targets import free_parameter

POINTS = (0.5, 1.0, 1.5)
"""Powers of the density asked for at which each weight is tried."""

INPUTS = 16, 256
"""Calibration inputs that answer: as many as `MACS` go, within these bounds."""

MACS = 1.0e12
"""Multiply-accumulates of all thinned networks together: some ten seconds on two cores."""

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
        density: share that stays, in (0, 1).
        progress: shown while it runs.
    """
    points = tuple(density**power for power in POINTS)
    moved = _moved(graph, state, calibration, weights, thin, points, progress)
    sizes = np.array([state[name].numel() for name in moved], np.float64)
    kept = allotted(np.array([moved[name] for name in moved]), points, sizes, density)
    return dict(zip(moved, map(float, kept), strict=True))


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


def _moved(
    graph: Graph,
    state: State,
    calibration: Calibration,
    weights: Collection[str],
    thin: Thin,
    points: Sequence[float],
    progress: Progress,
) -> dict[str, list[float]]:
    """How far the answers move when each weight alone is thinned to each of the points."""
    chosen = [consumer for consumer in calibration.consumers if consumer.weight in weights]
    count = _affordable(graph, calibration, chosen, len(points))
    walk, mended = Walk(graph, state), _Mended(graph, state, calibration, thin)
    dense = calibration.outputs(0, count)
    runs = [
        (walk.start(batch), len(tensors_in(arguments(batch))[0])) for batch in calibration.batches(0, count)
    ]
    found: dict[str, list[float]] = {}
    here = 0
    with progress.task("weighing layers", total=len(chosen)) as advance, torch.no_grad():
        for consumer in chosen:
            for live, size in runs:
                walk.advance(live, size, here, consumer.op)
            here = consumer.op
            found[consumer.weight] = []
            for point in points:
                changed = mended(consumer, point)
                whole = {name: walk.state[name] for name in changed}
                walk.state.update(changed)
                answers = zip(*(walk.finished(live, size, here) for live, size in runs), strict=True)
                found[consumer.weight].append(
                    divergence(dense, [torch.cat(one).cpu() for one in answers]).key
                )
                walk.state.update(whole)
            advance(1)
    return found


def _affordable(graph: Graph, calibration: Calibration, chosen: Sequence[Consumer], points: int) -> int:
    """How many inputs may answer: each thinned network runs from the thinned weight on."""
    work = {consumer.op: macs_of(consumer, graph) for consumer in calibration.consumers}
    each = points * sum(macs for consumer in chosen for op, macs in work.items() if op >= consumer.op)
    count = min(inputs_within(MACS, each, *INPUTS), calibration.count)
    return count if graph.batched else max(count - count % graph.batch, graph.batch)


class _Mended:
    """One consumer alone thinned on dense moments, with the mean of its output put right where something can."""

    def __init__(self, graph: Graph, state: State, calibration: Calibration, thin: Thin) -> None:
        self._state, self._thin, self._moments = state, thin, calibration.moments
        self._following = followings(graph, calibration.consumers)
        self._graph = graph
        self._sizes = Sizes(graph, graph.coupling.keep({}))

    def __call__(self, consumer: Consumer, density: float) -> dict[str, Tensor]:
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
        changed = {consumer.weight: flat.reshape(weight.shape)}
        if free is None:
            return changed
        shift = torch.cat(shifts).to(self._state[free].dtype) * (1 if consumer.bias else -1)
        return {**changed, free: self._state[free].detach() + shift}
