"""Networks on a GPU: what learns from inputs works on a copy on the CPU, and what comes of it goes where they were.

Least squares want float64, which not every device has (MPS has none), and inputs are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sned.errors import ModelError
from sned.graph.trace import check_network, state_of
from sned.surgery.twin import twin

CPU = torch.device("cpu")


def home_of(model: nn.Module) -> torch.device:
    """The device of a network; one without values (on the meta device) or without weights is at home on the CPU.

    Raises:
        ModelError: it is spread over several, or is no network.
    """
    check_network(model)
    first: dict[torch.device, str] = {}
    for name, tensor in state_of(model).items():
        first.setdefault(CPU if tensor.is_meta else tensor.device, name)
    if len(first) > 1:
        found = ", ".join(f"{name!r} on {device}" for device, name in first.items())
        raise ModelError(f"A model must be on one device, got {found}. Move it with `model.to('cpu')`.")
    return next(iter(first), CPU)


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """A network on a device: itself, where it is there already, else a copy; tensors in plain attributes go along.

    Raises:
        ModelError: it is spread over several devices, or cannot be copied.
    """
    if home_of(model) == device:
        return model
    other = twin(model, {name: tensor.detach().to(device) for name, tensor in state_of(model).items()})
    for module in other.modules():
        held = vars(module)
        held.update({name: t.to(device) for name, t in held.items() if isinstance(t, torch.Tensor)})
    return other


def moved_inputs(inputs: Any, device: torch.device) -> Any:
    """Inputs on a device, in whatever containers they are."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, on the CPU; one that has no values (on the meta device) as it is."""
    return {name: tensor if tensor.is_meta else tensor.cpu() for name, tensor in state_of(model).items()}


def asked_at(device: torch.device, evaluate: Callable[[Any], float]) -> Callable[[Any], float]:
    """The user's measure, asked about networks on a device."""
    return lambda model: evaluate(moved(model, device))
