"""What belongs to a unit, gathered into one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from sned.graph.ir import Graph, Group, Slices
from sned.saliency.registry import State
from sned.saliency.scores import FloatArray


def rows(slices: Slices, tensor: torch.Tensor) -> torch.Tensor:
    """`[size, m]` in float64: every value of `tensor` that goes with each unit."""
    size = len(slices.positions)
    at = torch.from_numpy(slices.positions.reshape(-1)).to(tensor.device)
    return tensor.detach().index_select(slices.axis, at).movedim(slices.axis, 0).reshape(size, -1).double()


def weights(graph: Graph, group: Group) -> Iterator[Slices]:
    """The slices of a group in matrices and kernels; in all trainable parameters where it is in none of
    those.

    Biases and normalisation are left out: their magnitude says nothing of what a unit computes.
    """
    trainable = [s for s in group.slices if s.parameter in graph.trainable]
    kernels = [s for s in trainable if len(graph.tensors[graph.parameters[s.parameter]].shape) > 1]
    yield from kernels or trainable or group.slices


def producers(graph: Graph, group: Group) -> list[Slices]:
    """The weights that make the group's units (its filters); all of its weights without those."""
    held = list(weights(graph, group))
    return [s for s in held if s.output] or held


def matrix(graph: Graph, group: Group, state: State) -> torch.Tensor:
    """`[size, m]`: the filters of every unit, side by side."""
    return torch.cat([rows(s, state[s.parameter]) for s in producers(graph, group)], dim=1)


def owned(group: Group, values: Mapping[str, torch.Tensor]) -> FloatArray:
    """`[size]`: for each unit the sum of `values`, shaped like the parameters, over all that leaves with it."""
    total = np.zeros(group.size)
    for s in group.slices:
        if s.parameter in values:
            total += rows(s, values[s.parameter]).sum(dim=1).cpu().numpy()
    return total
