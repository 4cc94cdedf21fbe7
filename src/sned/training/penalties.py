"""Sparse learning: penalties that make the weights of whole units small before the units are removed.

Units are those of a graph's groups, so that whatever goes with a unit shrinks together. Gradients are changed in place
after the backward pass; nothing is added to the loss that logs show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sned.errors import PlanError
from sned.graph.ir import Graph, Group, IntArray
from sned.graph.plan import Plan
from sned.graph.trace import state_of
from sned.saliency.batchnorm import scales
from sned.saliency.units import weights
from sned.training.parts import Part

SMALL = 1e-8
"""Added to norms that are divided by: a unit that is zero is pulled no further."""


@dataclass(frozen=True, eq=False)
class Owned:
    """What the units of a group own along one axis of a parameter: `unit[i]` is the unit of index `i`, -1 for none."""

    parameter: str
    axis: int
    unit: IntArray

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Values of units `[size]` as factors along the axis; 0 where there is no unit."""
        unit = torch.from_numpy(self.unit).to(values.device)
        along = torch.where(unit >= 0, values[unit.clamp(min=0)], values.new_zeros(()))
        return along.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])

    def energy(self, weight: Tensor, size: int) -> Tensor:
        """`[size]`: the sum of squares of what each unit owns."""
        along = weight.square().movedim(self.axis, 0).reshape(len(self.unit), -1).sum(1)
        unit = torch.from_numpy(self.unit).to(weight.device)
        return along.new_zeros(size + 1).index_add_(0, torch.where(unit < 0, size, unit), along)[:size]


def owned(graph: Graph, group: Group) -> tuple[Owned, ...]:
    """Kernels and matrices in which a group's units own slices."""
    found = []
    for part in weights(graph, group):
        if part.parameter not in graph.trainable:
            continue
        unit = np.full(graph.tensors[graph.parameters[part.parameter]].shape[part.axis], -1, np.int64)
        unit[part.positions] = np.arange(group.size)[:, None]
        found.append(Owned(part.parameter, part.axis, unit))
    return tuple(found)


def unit_norms(model: nn.Module, parts: tuple[Owned, ...], size: int) -> Tensor:
    """`[size]`: the Euclidean norm of all that each unit owns."""
    total = torch.stack([part.energy(model.get_parameter(part.parameter).detach(), size) for part in parts])
    return total.sum(0).sqrt()


class UnitPenalty(Part):
    """Pull the weights of each unit towards zero, by a factor of its own that a subclass tells.

    Args:
        graph: of the network that is trained.
    """

    def __init__(self, graph: Graph) -> None:
        every = [(group, owned(graph, group)) for group in graph.groups]
        self.parts: Sequence[tuple[Group, tuple[Owned, ...]]] = [(g, parts) for g, parts in every if parts]
        self._shapes = {name: graph.tensors[number].shape for name, number in graph.parameters.items()}

    def check(self, model: nn.Module) -> None:
        """Refuse a network whose units are others than the graph's.

        Raises:
            PlanError: a parameter is missing, or has another shape.
        """
        there = state_of(model)
        for part in (part for _, parts in self.parts for part in parts):
            shape, name = self._shapes[part.parameter], part.parameter
            if name not in there or tuple(there[name].shape) != shape:
                found = list(there[name].shape) if name in there else "missing"
                raise PlanError(
                    f"A penalty takes units from the graph of the very network that is trained, but {name!r} is "
                    f"{list(shape)} in the graph and {found} in the network. Make it from `sned.trace` of that; "
                    "for `prune_in_cycles`, where each cycle trains a smaller one, give `parts` as a function from a "
                    "graph to the parts."
                )

    def pull(self, group: Group, norms: Tensor, step: int, total: int) -> Tensor:
        """`[size]`: what the weights of each unit are multiplied with and added to their gradients."""
        raise NotImplementedError

    def after_backward(self, model: nn.Module, step: int, total: int) -> None:
        """Add the gradient of the penalty."""
        for group, parts in self.parts:
            factors = self.pull(group, unit_norms(model, parts, group.size), step, total)
            for part in parts:
                weight = model.get_parameter(part.parameter)
                if weight.grad is not None:
                    weight.grad.addcmul_(weight.detach(), part.spread(factors, weight.shape).to(weight.dtype))


class GroupLasso(UnitPenalty):
    """`strength Σ_units √m ‖w_unit‖`, with `m` how many numbers the unit owns: whole units become small.

    Args:
        graph: of the network that is trained.
        strength: at least 0; it grows to that in a straight line over the first tenth of the steps.

    Reference: Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006; Wen et al.,
        Learning Structured Sparsity in Deep Neural Networks, 2016. Units are the coupled ones, as in Fang et al.,
        DepGraph, 2023.
    """

    def __init__(self, graph: Graph, strength: float = 1e-4) -> None:
        super().__init__(graph)
        self.strength = _strength(strength)
        self._counts = {
            group.index: sum(_numbers(graph, part) for part in parts) / group.size
            for group, parts in self.parts
        }

    def told(self) -> str:
        """Its strength."""
        return f"GroupLasso({self.strength:g})"

    def pull(self, group: Group, norms: Tensor, step: int, total: int) -> Tensor:
        """`strength √m / ‖w‖`."""
        now = self.strength * min(1.0, 10 * (step + 1) / total)
        return float(now * self._counts[group.index] ** 0.5) / (norms + SMALL)


class GrowingPenalty(UnitPenalty):
    """An L2 penalty on the units that a plan removes, which grows until they are nearly zero; the others adapt.

    Args:
        graph: of the network that is trained.
        plan: the units that will go; apply it once training is over.
        ceiling: the penalty's factor in the end, at least 0.

    Raises:
        PlanError: the plan removes nothing.

    Reference: Wang et al., Neural Pruning via Growing Regularization, 2021 (GReg-1; here it grows at every step).
    """

    def __init__(self, graph: Graph, plan: Plan, ceiling: float = 1.0) -> None:
        super().__init__(graph)
        self.ceiling = _strength(ceiling)
        if not plan.removed:
            raise PlanError("A growing penalty needs a plan that removes units, but this one removes none.")
        self._going = {group.index: _flags(group, plan) for group, _ in self.parts}

    def told(self) -> str:
        """Its ceiling, and how many units go."""
        return f"GrowingPenalty({self.ceiling:g}, {sum(int(flags.sum()) for flags in self._going.values())} units)"

    def pull(self, group: Group, norms: Tensor, step: int, total: int) -> Tensor:
        """The factor of now, on the units that will go."""
        going = torch.from_numpy(self._going[group.index]).to(norms)
        return going * (self.ceiling * (step + 1) / total)


class Slimming(Part):
    """`strength Σ |gamma|` over the scales of batch normalisation; prune by the criterion "batchnorm" afterwards.

    Args:
        graph: of the network that is trained.
        strength: at least 0.

    Raises:
        PlanError: the network has no batch normalisation.

    Reference: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, equation 1.
    """

    def __init__(self, graph: Graph, strength: float = 1e-4) -> None:
        self.strength = _strength(strength)
        self.names = sorted(scales(graph))
        if not self.names:
            raise PlanError("Slimming shrinks the scales of batch normalisation, but this network has none.")

    def told(self) -> str:
        """Its strength."""
        return f"Slimming({self.strength:g})"

    def after_backward(self, model: nn.Module, step: int, total: int) -> None:
        """Add the subgradient of the penalty."""
        for name in self.names:
            scale = model.get_parameter(name)
            if scale.grad is not None:
                scale.grad.add_(scale.detach().sign(), alpha=self.strength)


def _numbers(graph: Graph, part: Owned) -> int:
    shape = graph.tensors[graph.parameters[part.parameter]].shape
    return int((part.unit >= 0).sum()) * int(np.prod(shape)) // max(shape[part.axis], 1)


def _flags(group: Group, plan: Plan) -> IntArray:
    flags = np.zeros(group.size, np.int64)
    flags[list(plan.removed.get(group.name, ()))] = 1
    return flags


def _strength(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise PlanError(f"A penalty's strength must be a finite number of at least 0, got {value!r}.")
    return value
