"""Zeros that grow in number while a network is trained, until as many are there as asked.

Reference: Zhu and Gupta, To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sned.calibration.patterns import SINGLE, Pattern
from sned.errors import PlanError, close_names
from sned.surgery.masks import first_names, hold_masks, masks_of
from sned.training.parts import Part, Trained


def cubic(done: float) -> float:
    """The share of what is to go that has gone by then: `1 - (1 - done)³`, equation 1 with nothing gone at first."""
    return 1 - (1 - min(max(done, 0.0), 1.0)) ** 3


class GradualMasks(Part):
    """Set the smallest weights of each tensor to zero, more of them at every update, and hold them there.

    Args:
        sparsity: share of zeros in the end, in (0, 1); given by a pattern N:M.
        pattern: of the zeros: "weight", "2:4", "1x4".
        names: parameters that are thinned; by default the weights of all convolutions and linear layers.
        begin, end: shares of the steps between which zeros are added, `0 <= begin < end <= 1`.
        updates: how often, at least 1.

    Raises:
        PlanError: a value is out of its range.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        pattern: str = SINGLE,
        names: Sequence[str] | None = None,
        begin: float = 0.0,
        end: float = 0.7,
        updates: int = 20,
    ) -> None:
        self.pattern = Pattern.parse(pattern)
        wanted = self.pattern.fixed if sparsity is None else sparsity
        if wanted is None or not 0 < wanted < 1:
            raise PlanError(f"`sparsity` of growing masks must be in (0, 1), got {sparsity}.")
        if self.pattern.fixed is not None and abs(wanted - self.pattern.fixed) > 1e-6:
            raise PlanError(
                f"The pattern {pattern} makes {self.pattern.fixed:.0%} zeros, but {wanted:.0%} was asked."
            )
        if not 0 <= begin < end <= 1 or updates < 1:
            raise PlanError(
                "Masks grow between two shares of the steps, 0 <= begin < end <= 1, at least once, got "
                f"begin={begin}, end={end}, updates={updates}."
            )
        self.sparsity, self.names = wanted, names
        self.begin, self.end, self.updates = begin, end, updates

    def check(self, model: nn.Module) -> None:
        """Refuse names that are not there, and weights that are computed from others.

        Raises:
            PlanError: says which.
        """
        parameters = first_names(model)
        for name in self._weights(model):
            if name not in parameters:
                raise PlanError(
                    f"Masks hold zeros of parameters, but {name!r} is computed from others, as by a weight norm. Take "
                    "that off (`torch.nn.utils.parametrize.remove_parametrizations`), or give `names` without it."
                )

    def after_step(self, trained: Trained, step: int, total: int) -> None:
        """Add zeros where an update is due."""
        level = self._level(step, total)
        if level == self._level(step - 1, total):
            return
        masks = self.masks(trained.model, self.sparsity * cubic(level / self.updates))
        put_masks(trained, masks)

    def told(self) -> str:
        """Its settings."""
        names = "all" if self.names is None else ", ".join(self.names)
        when = f"{self.begin:g} to {self.end:g} in {self.updates}"
        return f"GradualMasks({self.sparsity:g}, {self.pattern.name}, {names}, {when})"

    def ready(self, step: int, total: int) -> bool:
        """Whether all zeros are there."""
        return self._level(step, total) == self.updates

    def masks(self, model: nn.Module, sparsity: float) -> dict[str, Tensor]:
        """The masks that leave the largest weights; what is zero stays so."""
        earlier, first = masks_of(model), first_names(model)
        return {
            name: largest(weight.detach(), 1 - sparsity, self.pattern)
            & earlier.get(first[name], _all(weight))
            for name, weight in self._weights(model).items()
        }

    def _level(self, step: int, total: int) -> int:
        """How many updates were made by then: the last one by `end`, whatever the rounding."""
        done = (step / total - self.begin) / (self.end - self.begin)
        return min(max(int(done * self.updates + 1e-9), 0), self.updates)

    def _weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        known = thinnable(model)
        if self.names is None:
            return known
        for name in self.names:
            if name not in known:
                raise PlanError(
                    f"{name!r} is no weight of a convolution or linear layer. {close_names(name, known)}"
                )
        return {name: known[name] for name in self.names}


def thinnable(model: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers by name, but for frozen ones and those of a single input."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{path}.weight" if path else "weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, kinds) and module.weight.shape[1] > 1 and module.weight.requires_grad
    }


def largest(weight: Tensor, density: float, pattern: Pattern) -> Tensor:
    """bool, like `weight`: the share `density` of entries (or blocks) of the largest squares."""
    outputs, channels = weight.shape[:2]
    chosen = pattern.choose(weight.double().square().reshape(outputs, channels, -1), density)
    return chosen.reshape(weight.shape)


def put_masks(trained: Trained, masks: Mapping[str, Tensor]) -> None:
    """Hold masks in a network in training, in its average, and in what its optimiser remembers of the weights."""
    for model in (trained.model, trained.average):
        if model is not None:
            hold_masks(model, masks)
    for name, mask in masks.items():
        parameter = trained.model.get_parameter(name)
        for value in trained.optimiser.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                value.mul_(mask)  # momentum would move what was just set to zero


def _all(weight: Tensor) -> Tensor:
    return torch.ones_like(weight, dtype=torch.bool)
