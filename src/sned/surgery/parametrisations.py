"""Weights that each pass works out become plain numbers: those of parametrisations, and of the older hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sned.graph.modules import modules_of
from sned.surgery.masks import burn_in
from sned.surgery.twin import copied

_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""What sets a weight anew ahead of each pass."""


def folded(model: nn.Module) -> nn.Module:
    """The network with plain weights for those that it works out, in evaluation mode; itself where there are none.

    What comes out otherwise each time (noise on weights) is left: it is no weight.

    Args:
        model: any network; it is not touched.
    """
    if not any(is_parametrized(module) or _hooks(module) for _, module in modules_of(model)):
        return model
    plain = burn_in(copied(model)).eval()
    with torch.no_grad():
        for _, module in modules_of(plain):
            for key, hook in _hooks(module).items():
                hook.remove(module)
                del module._forward_pre_hooks[key]
            if is_parametrized(module):
                _fold(module)
    return plain


def _hooks(module: nn.Module) -> dict[int, WeightNorm | SpectralNorm | BasePruningMethod]:
    return {key: hook for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _HOOKS)}


def _fold(module: nn.Module) -> None:
    """PyTorch's own removal edits the class, which copies of a parametrised module share."""
    weights, again = _worked_out(module), _worked_out(module)
    if not all(torch.equal(weights[name], again[name]) for name in weights):
        return
    module.__class__ = type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        setattr(module, name, nn.Parameter(weight, requires_grad=False))


def _worked_out(module: nn.Module) -> dict[str, Tensor]:
    tables: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
    return {name: getattr(module, name).detach().clone() for name in tables}
