"""The modules of a network, walked many times while it is recorded, copied and repaired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, with its first path: `model.named_modules()`, without a generator for every level."""
    met: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in met:
            continue
        met.add(id(module))
        yield path, module
        if module._modules:
            inside = f"{path}." if path else ""
            held = [(inside + name, child) for name, child in module._modules.items() if child is not None]
            waiting += reversed(held)


def recurrent(model: object) -> frozenset[str]:
    """Paths of the layers that are recorded step by step, and are one op of an exported file."""
    held = modules_of(model) if isinstance(model, nn.Module) else ()
    return frozenset(path for path, module in held if isinstance(module, nn.LSTM | nn.GRU))


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """Whether each module is in training mode, the outer ones first."""
    return {module: module.training for _, module in modules_of(model)}


def put_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Put each module into its own mode, the outer ones first: `train` may do more than set the flag."""
    for module, training in modes.items():
        if module.training is not training:
            module.train(training)
    for module, training in modes.items():
        if module.training is not training:
            module.training = training
