"""What is put in training mode, and what keeps the mode that the user gave it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from sned.graph.modules import put_modes


def put_in_training(model: nn.Module, given: Mapping[nn.Module, bool]) -> None:
    """Put a network in training mode as its user means it.

    In a network that was given in training mode each module keeps its own: a BatchNorm in evaluation mode is one that
    was frozen. One that was given in evaluation mode, as pruning gives it, says nothing of its modules: all are put in
    training mode but for statistics among frozen parameters.

    Args:
        model: the network, or what it was wrapped in.
        given: the mode of each of its modules as the user gave it, its own first.
    """
    model.train()
    network = next(iter(given))
    if given[network]:
        put_modes(given)
        return
    for module in _frozen_statistics(network):
        module.training = False


def _frozen_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """Modules with buffers of their own inside a part that has parameters, of which none is trained."""
    for part in model.modules():
        trained = [parameter.requires_grad for parameter in part.parameters()]
        if trained and not any(trained):
            yield from (module for module in part.modules() if module._buffers)
