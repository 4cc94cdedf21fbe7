"""What hangs on each group of units: how much of the network would go with it."""

from dataclasses import dataclass

import numpy as np

from sned.devices import CostModel
from sned.graph.ir import Graph


@dataclass(frozen=True)
class Share:
    """Fractions of the dense network's costs that go when one group is cut to its least.

    A layer between two groups hangs on both, so that the shares of all groups add up to more than 1.
    """

    macs: float
    parameters: float
    latency: float


def shares(graph: Graph, cost: CostModel) -> tuple[Share, ...]:
    """Ask the cost model what each group of the graph is worth.

    Formula: `share_g = 1 - cost(n with n_g at its least) / cost(n)` with `n` the units of every group. A
    group's least is one unit a cell.

    Args:
        graph: with `G` groups.
        cost: a model of the costs of that graph.

    Returns:
        One `Share` a group, in their order.
    """
    sizes = np.array([group.size for group in graph.groups], np.float64)
    least = np.array([group.cell_count for group in graph.groups], np.float64)
    plans = np.tile(sizes, (len(sizes) + 1, 1))
    plans[np.arange(1, len(plans)), np.arange(len(sizes))] = least
    costs = cost.evaluate(plans)
    macs, parameters, latency = (_gone(values) for values in (costs.macs, costs.parameters, costs.latency_ms))
    return tuple(Share(*found) for found in zip(macs, parameters, latency, strict=True))


def _gone(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """1 - each value over the first, which is that of the dense network."""
    return [float(1 - value / values[0]) if values[0] else 0.0 for value in values[1:]]
