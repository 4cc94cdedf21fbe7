"""Zeros that stay zero: masks inside tensors hold while the network is trained, and are burnt in by one call.

A masked network is of the user's own class, with the same names in its `state_dict`. A hook on the gradient of the
parameter sees to it that no optimiser moves a zero (weight decay and momentum of zero are zero), and hooks on the
module that this holds in copies, for exchanged parameters, and after `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sned.errors import SurgeryError
from sned.graph.ir import IntArray
from sned.graph.modules import modules_of
from sned.graph.plan import Plan
from sned.graph.replay import cut_down
from sned.surgery.keras import is_keras_model


class Mask:
    """Holds the masks of one module's parameters; called ahead of each forward pass.

    Args:
        masks: `{parameter name inside the module: bool tensor like it}`, True where entries may be other than zero.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = dict(masks)
        self._held: dict[str, int] = {}

    def __call__(self, module: nn.Module, _: object) -> None:
        """Take hold of parameters that were exchanged or copied since the last pass; mere stand-ins are left alone."""
        held = {name: getattr(module, name) for name in self.masks}
        if any(isinstance(p, nn.Parameter) and self._held.get(name) != id(p) for name, p in held.items()):
            self.hold(module)

    def loaded(self, module: nn.Module, _: object) -> None:
        """What was loaded gets the zeros of this network."""
        self.hold(module)

    def hold(self, module: nn.Module) -> None:
        """Set masked entries to zero and keep gradients away from them."""
        for name in self.masks:
            parameter: Tensor = getattr(module, name)
            with torch.no_grad():
                parameter.mul_(self.masks[name].to(parameter.device))
            if self._held.get(name) != id(parameter) and parameter.requires_grad:
                parameter.register_hook(partial(self._masked, name))  # type: ignore[no-untyped-call]
                self._held[name] = id(parameter)

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        self.masks[name] = self.masks[name].to(gradient.device)
        return gradient * self.masks[name]

    def __deepcopy__(self, _: dict[int, object]) -> Mask:
        return Mask(self.masks)

    def __getstate__(self) -> dict[str, object]:
        return {"masks": self.masks, "_held": {}}


def hold_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hold masks in a network, in place; masked entries become zero.

    Args:
        model: any network.
        masks: `{parameter name: bool tensor like it}`, True where entries may be other than zero.

    Raises:
        SurgeryError: no such parameter, or a mask of another shape; nothing was changed.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            got = f"{tuple(parameters[name].shape)}" if name in parameters else "no such parameter"
            raise SurgeryError(
                f"A mask fits a parameter of the network: {name!r} must have shape {tuple(mask.shape)}, got {got}."
            )
        path, _, leaf = name.rpartition(".")
        by_module.setdefault(path, {})[leaf] = mask.to(torch.bool)
    for path, held in by_module.items():
        module = model.get_submodule(path)
        earlier = {n: m for hook in _hooks(module) for n, m in hook.masks.items()}
        _release(module)
        hook = Mask({**earlier, **{n: m & earlier[n] if n in earlier else m for n, m in held.items()}})
        module.register_forward_pre_hook(hook)
        module.register_load_state_dict_post_hook(hook.loaded)  # type: ignore[no-untyped-call]
        hook.hold(module)


def cut_masks(model: nn.Module, kept: Mapping[str, Mapping[int, IntArray]]) -> None:
    """Cut the masks that a network holds as its parameters were cut, in place: `{parameter: {axis: indices}}`."""
    for path, module in modules_of(model):
        for hook in _hooks(module):
            for name, mask in hook.masks.items():
                hook.masks[name] = cut_down(mask, kept.get(f"{path}.{name}" if path else name, {}))


def with_masks_of(model: nn.Module, plan: Plan) -> Plan:
    """The plan with all the masks that `apply` leaves in the pruned network: those that `model` holds, cut, and its
    own."""
    masks = dict(plan.masks)
    for name, held in masks_of(model).items():
        mask = cut_down(held, plan.kept.get(name, {})).cpu().numpy()
        masks[name] = masks[name] & mask if name in masks else mask
    return replace(plan, masks=masks)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that a network holds, `{parameter name: bool}`."""
    return {
        f"{path}.{name}" if path else name: mask
        for path, module in modules_of(model)
        for hook in _hooks(module)
        for name, mask in hook.masks.items()
    }


def burn_in(model: nn.Module) -> nn.Module:
    """Let go of all masks, in place: zeros stay in the weights as plain numbers. Returns the model.

    Do so before an export, or when further training may fill the zeros again. The zeros of a Keras model are plain
    numbers already.
    """
    if is_keras_model(model):
        return model
    for _, module in modules_of(model):
        for hook in _hooks(module):
            hook.hold(module)
        _release(module)
    return model


def _hooks(module: nn.Module) -> list[Mask]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Mask)]


def _release(module: nn.Module) -> None:
    for hook in _hooks(module):
        for name in hook.masks:
            held = getattr(module, name)._backward_hooks or {}
            _drop(held, lambda found: isinstance(found, partial) and isinstance(_owner(found.func), Mask))
    _drop(module._forward_pre_hooks, lambda found: isinstance(found, Mask))
    _drop(module._load_state_dict_post_hooks, lambda found: isinstance(_owner(found), Mask))


def _owner(function: object) -> object:
    return getattr(function, "__self__", None)


def _drop(hooks: dict[int, Any], ours: Callable[[Any], bool]) -> None:
    for key in [key for key, hook in hooks.items() if ours(hook)]:
        del hooks[key]
