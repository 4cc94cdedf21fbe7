"""How far each stage of a compression takes a network from the one that it started as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sned.errors import CalibrationError
from sned.evaluation import evaluation_mode
from sned.export.parity import Array, compare, rows_of_classes
from sned.graph.example import Inputs, called, tensors_in


@dataclass(frozen=True)
class Stage:
    """A network on the way, against the first one.

    Attributes:
        name: of the stage, "pruned" or "int8".
        error: root mean square of the difference of all outputs, over that of the first network's outputs.
        added: what this stage adds by itself: the same against the stage before it.
        agreement: fraction in [0, 1] of rows that get the first network's class; None without classes.
    """

    name: str
    error: float
    added: float
    agreement: float | None


def stages(networks: Mapping[str, nn.Module], batches: Iterable[Inputs]) -> tuple[Stage, ...]:
    """Compare networks with the first of them, and each with the one before, on the same inputs.

    Args:
        networks: stage → network in order, the dense one first; `exported.module()` makes one of a file.
        batches: inputs without labels, read once.

    Returns:
        One `Stage` for each network but the first.

    Raises:
        CalibrationError: there are no inputs.

    Example:
        stages({"dense": model, "pruned": bare, "repaired": small, "int8": exported.module()}, batches)
    """
    outputs: dict[str, list[list[Array]]] = {name: [] for name in networks}
    for inputs in batches:
        for name, network in networks.items():
            outputs[name].append(_outputs(network, inputs))
    joined = {name: list(_joined(rows)) for name, rows in outputs.items()}
    if not all(joined.values()):
        raise CalibrationError("There are no inputs to compare the stages on: `batches` is empty.")
    first, *names = joined
    made = []
    for before, name in zip([first, *names], names, strict=False):
        from_first, from_before = compare(joined[first], joined[name]), compare(joined[before], joined[name])
        made.append(Stage(name, from_first.error, from_before.error, from_first.top1_agreement))
    return tuple(made)


def _outputs(network: nn.Module, inputs: Inputs) -> list[Array]:
    with evaluation_mode(network), torch.no_grad():
        return [tensor.float().cpu().numpy() for tensor in tensors_in(called(network, inputs))]


def _joined(batches: list[list[Array]]) -> Iterator[Array]:
    """Each output over all batches, row behind row: inputs may lie along any axis, as in the states of an LSTM."""
    for parts in zip(*batches, strict=True):
        rows = [rows_of_classes(part) for part in parts]
        alike = len({row.shape[1:] for row in rows}) == 1
        yield np.concatenate(rows if alike else [row.reshape(-1) for row in rows])
