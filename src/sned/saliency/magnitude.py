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
"""Weights whose powers are taken at a time: they stay in the cache."""


def magnitude(graph: Graph, group: Group, state: State, power: int) -> FloatArray:
    """`[size]`: the importance of each unit of one group, 1 on average; p is 1 or 2."""
    return _importance(graph, group, lambda parameter, axis: _along(_powers(state[parameter], power), axis))


def magnitudes(graph: Graph, state: State, power: int) -> dict[str, FloatArray]:
    """`magnitude` of every group by name; a weight is read once, whatever groups lie on its axes."""
    powers = cache(lambda parameter: _powers(state[parameter], power))
    along = cache(lambda parameter, axis: _along(powers(parameter), axis))
    return {group.name: _importance(graph, group, along) for group in graph.groups}


def _importance(graph: Graph, group: Group, along: Callable[[str, int], FloatArray]) -> FloatArray:
    each = [mean_one(along(s.parameter, s.axis)[s.positions].sum(axis=1)) for s in weights(graph, group)]
    return mean_one(np.mean(each, axis=0))


def _powers(tensor: torch.Tensor, power: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`|W|^p` summed over all axes but the first, and over the first; the whole tensor is not copied on the way."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    first, rest = [], tensor.new_zeros(tensor.shape[1:], dtype=dtype)
    for part in torch.split(tensor.detach(), max(1, PART // max(tensor[:1].numel(), 1))):
        powers = part.to(dtype).abs() if power == 1 else part.to(dtype).square()
        first.append(_sums(powers, 0))
        rest += powers.sum(0)
    return torch.cat(first), rest


def _along(powers: tuple[torch.Tensor, torch.Tensor], axis: int) -> FloatArray:
    """`|W|_p^p` of everything at each place of an axis."""
    first, rest = powers
    return (_sums(rest, axis - 1) if axis else first).cpu().double().numpy()


def _sums(values: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum over all other axes, of which there may be none."""
    return values.unsqueeze(-1).movedim(axis, 0).flatten(1).sum(1)


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
