"""Units with small weights go first.

`importance(u) = mean over the weights W of the group of  |W_u|_p^p / mean_v |W_v|_p^p`, over everything that
leaves with the unit: its filter, and the columns of those that read it. The mean over units is 1 in every
layer, so layers of any width and scale compare.

Reference: Li et al., Pruning Filters for Efficient ConvNets, 2017 (L1); Fang et al., DepGraph, 2023, equation
6, for the sum over all that a group couples (they do not divide by the mean of each weight; we do, so that no
one tensor decides).
"""

from __future__ import annotations

import numpy as np
import torch

from sned.graph.ir import Graph, Group, Slices
from sned.saliency.registry import Evidence, State, criterion
from sned.saliency.scores import FloatArray, Scores, from_importance, mean_one
from sned.saliency.units import weights

PART = 2**18
"""Weights that are squared at a time: they stay in the cache."""


def magnitude(graph: Graph, group: Group, state: State, power: int) -> FloatArray:
    """`[size]`: the importance of each unit, 1 on average."""
    each = [mean_one(_norms(s, state[s.parameter], power)) for s in weights(graph, group)]
    return mean_one(np.mean(each, axis=0))


def _norms(slices: Slices, tensor: torch.Tensor, power: int) -> FloatArray:
    """`[size]`: `|W_u|_p^p` of what goes with each unit, p = 1 or 2."""
    values = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    lines = _along(values, slices.axis, power).cpu().double().numpy()
    found: FloatArray = lines[slices.positions].sum(axis=1)
    return found


def _along(values: torch.Tensor, axis: int, power: int) -> torch.Tensor:
    """`|.|_p^p` of everything at each place of an axis; no copy of the whole tensor is made on the way."""
    others = [other for other in range(values.ndim) if other != axis]
    if axis == 0:
        return torch.linalg.vector_norm(values, power, others) ** power if others else values.abs() ** power
    total = values.new_zeros(values.shape[axis])
    for part in torch.split(values, max(1, PART // max(values[:1].numel(), 1))):
        total += (part.abs() if power == 1 else part.square()).sum(others)
    return total


def _all(name: str, evidence: Evidence, power: int) -> Scores:
    graph = evidence.graph
    return from_importance(
        name, graph, {g.name: magnitude(graph, g, evidence.state, power) for g in graph.groups}
    )


@criterion("l1", "sum of the absolute weights of a unit")
def l1(evidence: Evidence) -> Scores:
    """Units with the smallest L1 norm go first."""
    return _all("l1", evidence, 1)


@criterion("l2", "sum of the squared weights of a unit")
def l2(evidence: Evidence) -> Scores:
    """Units with the smallest L2 norm go first."""
    return _all("l2", evidence, 2)
