"""Units with small weights go first.

`importance(u) = mean over the weights W of the group of  |W_u|_p^p / mean_v |W_v|_p^p`, over everything that
leaves with the unit: its filter, and the columns of those that read it. The mean over units is 1 in every
layer, so layers of any width and scale compare.

Reference: Li et al., Pruning Filters for Efficient ConvNets, 2017 (L1); Fang et al., DepGraph, 2023, equation
6, for the sum over all that a group couples (they do not divide by the mean of each weight; we do, so that no
one tensor decides).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from sned.graph.ir import Graph, Group
from sned.saliency.registry import Evidence, State, criterion
from sned.saliency.scores import FloatArray, Scores, from_importance, mean_one
from sned.saliency.units import weights

PART = 2**18
"""Weights that are squared at a time: they stay in the cache."""


def magnitude(graph: Graph, group: Group, state: State, power: int) -> FloatArray:
    """`[size]`: the importance of each unit of one group, 1 on average; p is 1 or 2."""
    return _importance(graph, group, lambda parameter, axis: _along(state[parameter], axis, power))


def magnitudes(graph: Graph, state: State, power: int) -> dict[str, FloatArray]:
    """`magnitude` of every group by name; an axis on which many groups lie, as behind a concat, is summed up once."""
    along = cache(lambda parameter, axis: _along(state[parameter], axis, power))
    return {group.name: _importance(graph, group, along) for group in graph.groups}


def _importance(graph: Graph, group: Group, along: Callable[[str, int], FloatArray]) -> FloatArray:
    each = [mean_one(along(s.parameter, s.axis)[s.positions].sum(axis=1)) for s in weights(graph, group)]
    return mean_one(np.mean(each, axis=0))


def _along(tensor: torch.Tensor, axis: int, power: int) -> FloatArray:
    """`|W|_p^p` of everything at each place of an axis; no copy of the whole tensor is made on the way."""
    values = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    return _powers(values, axis, power).cpu().double().numpy()


def _powers(values: torch.Tensor, axis: int, power: int) -> torch.Tensor:
    others = [other for other in range(values.ndim) if other != axis]
    if axis == 0:
        return torch.linalg.vector_norm(values, power, others) ** power if others else values.abs() ** power
    total = values.new_zeros(values.shape[1:])
    for part in torch.split(values, max(1, PART // max(values[:1].numel(), 1))):
        total += (part.abs() if power == 1 else part.square()).sum(0)
    return total.sum([other - 1 for other in others[1:]]) if others[1:] else total


def _all(name: str, evidence: Evidence, power: int) -> Scores:
    return from_importance(name, evidence.graph, magnitudes(evidence.graph, evidence.state, power))


@criterion("l1", "sum of the absolute weights of a unit", relative=True)
def l1(evidence: Evidence) -> Scores:
    """Units with the smallest L1 norm go first."""
    return _all("l1", evidence, 1)


@criterion("l2", "sum of the squared weights of a unit", relative=True)
def l2(evidence: Evidence) -> Scores:
    """Units with the smallest L2 norm go first."""
    return _all("l2", evidence, 2)
