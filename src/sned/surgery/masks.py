"""Zeros that stay zero: masks inside tensors hold while the network is trained, and are burnt in by one call.

A masked network is of the user's own class, with the same names in its `state_dict`. A hook on the gradient of the
parameter sees to it that no optimiser moves a zero (weight decay and momentum of zero are zero), and hooks on the
module that this holds in copies, for exchanged parameters, and after `load_state_dict`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
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
from sned.surgery.keras import is_keras, is_keras_model


class Mask:
    """Holds the masks of one module's parameters, and those of its copies; called ahead of each forward pass.

    Args:
        module: whose parameters they are.
        masks: `{parameter name inside the module: bool tensor like it}`, True where entries may be other than zero.
    """

    def __init__(self, module: nn.Module | None, masks: Mapping[str, Tensor]) -> None:
        self.masks = dict(masks)
        self._module = None if module is None else weakref.ref(module)

    def __call__(self, module: nn.Module, _: object) -> None:
        """Take hold of parameters that were exchanged since the last pass; mere stand-ins are left alone."""
        if not all(map(self._holds, self.parameters(module).values())):
            self.hold(module)

    def loaded(self, module: nn.Module, _: object) -> None:
        """What was loaded gets the zeros of this network; what was assigned is the caller's and is copied first."""
        for parameter in self.parameters(module).values():
            if not self._holds(parameter):
                parameter.data = parameter.data.clone()
        self.hold(module)

    def hold(self, module: nn.Module) -> None:
        """Set masked entries to zero and keep gradients away from them."""
        for name, parameter in self.parameters(module).items():
            with torch.no_grad():
                parameter.mul_(self.masks[name].to(parameter.device))
            self._take(name, parameter)

    def parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the module that have a mask."""
        held = {name: module._parameters.get(name) for name in self.masks}
        return {name: p for name, p in held.items() if isinstance(p, nn.Parameter)}

    def _take(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.requires_grad and not self._holds(parameter):
            parameter.register_hook(partial(self._masked, name))  # type: ignore[no-untyped-call]

    def _holds(self, parameter: nn.Parameter) -> bool:
        """Told by the hook on the parameter itself: another one may come to have the same identity."""
        return any(_mask_of(hook) is self for hook in (parameter._backward_hooks or {}).values())

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        self.masks[name] = self.masks[name].to(gradient.device)
        return gradient * self.masks[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Mask:
        memo.update((id(mask), mask) for mask in self.masks.values())
        mask = Mask.__new__(Mask)
        mask.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return mask

    def __getstate__(self) -> dict[str, Any]:
        module = None if self._module is None else self._module()
        found = {} if module is None else self.parameters(module)
        held = {name: parameter for name, parameter in found.items() if self._holds(parameter)}
        return {"module": module, "masks": self.masks, "held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take hold of a copy's parameters at once: a pass may never call the module (`out_proj` of attention)."""
        Mask.__init__(self, state["module"], state["masks"])
        for name, parameter in state["held"].items():
            self._take(name, parameter)


def hold_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hold masks in a network, in place; masked entries become zero.

    Args:
        model: any network.
        masks: `{parameter name: bool tensor like it}`, True where entries may be other than zero; any name of a tied
            parameter will do.

    Raises:
        SurgeryError: no such parameter, or a mask of another shape; nothing was changed.
    """
    if not masks:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first = first_names(model)
    by_module: dict[str, list[tuple[str, Tensor]]] = {}
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            got = f"{tuple(parameters[name].shape)}" if name in parameters else "no such parameter"
            raise SurgeryError(
                f"A mask fits a parameter of the network: {name!r} must have shape {tuple(mask.shape)}, got {got}."
            )
        path, _, leaf = first[name].rpartition(".")
        by_module.setdefault(path, []).append((leaf, mask.to(torch.bool)))
    for path, held in by_module.items():
        module = model.get_submodule(path)
        earlier = [named for hook in _hooks(module) for named in hook.masks.items()]
        _release(module)
        hook = Mask(module, _united([*earlier, *held]))
        module.register_forward_pre_hook(hook)
        module.register_load_state_dict_post_hook(hook.loaded)  # type: ignore[no-untyped-call]
        hook.hold(module)


def _united(masks: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """One mask a name: False where any of them is."""
    found: dict[str, Tensor] = {}
    for name, mask in masks:
        found[name] = found[name] & mask.to(found[name].device) if name in found else mask
    return found


def first_names(model: nn.Module) -> dict[str, str]:
    """The first name of the same parameter, for every name: masks, plans and files know tied weights by that."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in named}


def cut_masks(model: nn.Module, kept: Mapping[str, Mapping[int, IntArray]]) -> None:
    """Cut the masks that a network holds as its parameters were cut, in place: `{parameter: {axis: indices}}`."""
    hooked = [(path, hook) for path, module in modules_of(model) for hook in _hooks(module)]
    first = first_names(model) if hooked else {}
    for path, hook in hooked:
        for leaf, mask in hook.masks.items():
            name = f"{path}.{leaf}" if path else leaf
            hook.masks[leaf] = cut_down(mask, kept.get(first.get(name, name), {}))


def with_masks_of(model: nn.Module, plan: Plan) -> Plan:
    """The plan with the masks that `apply` leaves on what a pass reads: those that `model` holds, cut, and its own."""
    masks = dict(plan.masks)
    for name, held in masks_of(model).items():
        if name not in plan.shapes:
            continue
        mask = cut_down(held, plan.kept.get(name, {})).cpu().numpy()
        masks[name] = masks[name] & mask if name in masks else mask
    return replace(plan, masks=masks)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that a network holds, `{parameter name: bool}`; a tied parameter goes by its first name.

    The zeros of a Keras model are plain numbers: each of its kernels that holds some is taken to be masked there.
    """
    if is_keras(model):
        kernels = ((name, p != 0) for name, p in model.named_parameters() if p.ndim > 1 and p.any())
        return {name: mask for name, mask in kernels if not mask.all() and not name.endswith("bias")}
    first = first_names(model)
    named = [
        (f"{path}.{leaf}" if path else leaf, mask)
        for path, module in modules_of(model)
        for hook in _hooks(module)
        for leaf, mask in hook.masks.items()
    ]
    return _united((first.get(name, name), mask) for name, mask in named)


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
        for parameter in hook.parameters(module).values():
            _drop(parameter._backward_hooks or {}, lambda found: _mask_of(found) is not None)
    _drop(module._forward_pre_hooks, lambda found: isinstance(found, Mask))
    _drop(module._load_state_dict_post_hooks, lambda found: _mask_of(found) is not None)


def _mask_of(hook: object) -> Mask | None:
    """The mask whose method a hook is."""
    owner = getattr(hook.func if isinstance(hook, partial) else hook, "__self__", None)
    return owner if isinstance(owner, Mask) else None


def _drop(hooks: dict[int, Any], ours: Callable[[Any], bool]) -> None:
    for key in [key for key, hook in hooks.items() if ours(hook)]:
        del hooks[key]
