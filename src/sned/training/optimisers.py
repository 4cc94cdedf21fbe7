"""Which optimiser a network is trained with where the user does not say, and how the rate falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sned.errors import UserError, close_names
from sned.repair.drawn import COARSE

if TYPE_CHECKING:
    from sned.training.recipe import Recipe

MakeOptimiser = Callable[[list[dict[str, Any]]], Optimizer]
"""From PyTorch's parameter groups to an optimiser; the rates that it has are the peaks of the schedule."""

Schedule = Callable[[float], float]
"""From the share of training that is done, in [0, 1), to a factor on the rate."""

ADAM_RATE_OF_OTHERS = 1e-3
"""AdamW's rate where nothing is a transformer: small perceptrons and recurrent networks."""


@dataclass(frozen=True)
class Kind:
    """An optimiser by name: how it is made, and its rate and decay where the user gives none.

    Attributes:
        clip: norm that gradients are cut down to; None leaves them.
    """

    make: Callable[[list[dict[str, Any]], float], Optimizer]
    rate: float
    decay: float
    clip: float | None


KINDS: dict[str, Kind] = {
    "sgd": Kind(
        lambda groups, rate: torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True), 0.005, 5e-4, None
    ),
    "adamw": Kind(lambda groups, rate: torch.optim.AdamW(groups, rate), 1e-4, 0.01, 1.0),
}
"""SGD with Nesterov's momentum at a rate that a repaired network bears for ten epochs with batches of 128 (a hundred
epochs bear 0.02); AdamW at that of pretrained transformers."""


def default_kind(model: nn.Module) -> str:
    """ "sgd" for a convolutional network without layer normalisation, else "adamw"."""
    kinds = [type(module) for module in model.modules()]
    convolves = any(issubclass(kind, nn.modules.conv._ConvNd) for kind in kinds)
    return "sgd" if convolves and not _transforms(kinds) else "adamw"


def default_rate(model: nn.Module, kind: str) -> float:
    """The peak rate of an optimiser where the user gives none."""
    plain = not _transforms(type(module) for module in model.modules())
    return ADAM_RATE_OF_OTHERS if kind == "adamw" and plain else KINDS[kind].rate


def _transforms(kinds: Iterable[type]) -> bool:
    names = ("layernorm", "rmsnorm", "attention")
    return any(name in kind.__name__.lower() for kind in kinds for name in names)


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """What is trained: matrices and kernels with weight decay; biases, scales and other vectors without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("Nothing can be trained: no parameter of the model has `requires_grad`.")
    wide = [parameter for parameter in trained if parameter.ndim > 1]
    flat = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = ({"params": wide, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def coarse(model: nn.Module) -> str:
    """The precision of weights that are trained, where steps are lost in its rounding; "" where none are."""
    kinds = {
        str(p.dtype).removeprefix("torch.")
        for p in model.parameters()
        if p.requires_grad and p.dtype in COARSE
    }
    return " and ".join(sorted(kinds))


def find_kind(name: str) -> Kind:
    """The optimiser called `name`.

    Raises:
        UserError: there is none; close names are listed.
    """
    if name not in KINDS:
        raise UserError(f"No optimiser is called {name!r}; a function from parameter groups to one will do. "
                        f"{close_names(name, KINDS)}")  # fmt: skip
    return KINDS[name]


def cosine(done: float) -> float:
    """Half a cosine from 1 to 0.

    Reference: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017, equation 5.
    """
    return 0.5 * (1 + math.cos(math.pi * done))


def constant(done: float) -> float:
    """1 throughout."""
    del done
    return 1.0


def linear(done: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - done


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "constant": constant, "linear": linear}


def find_schedule(name: str) -> Schedule:
    """The schedule called `name`.

    Raises:
        UserError: there is none; close names are listed.
    """
    if name not in SCHEDULES:
        raise UserError(f"No schedule is called {name!r}; a function of the share done, in [0, 1), to a factor will "
                        f"do. {close_names(name, SCHEDULES)}")  # fmt: skip
    return SCHEDULES[name]


def rate_factor(schedule: Schedule, step: int, total: int, warmup: float) -> float:
    """The factor on the rate at `step` of `total`: a straight rise over the first `warmup` share, then `schedule`."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return schedule((step - rising) / max(total - rising, 1))


def make_optimiser(model: nn.Module, recipe: Recipe) -> tuple[Optimizer, float | None]:
    """The optimiser, and the norm that its gradients are cut down to."""
    asked = recipe.optimiser or default_kind(model)
    if not isinstance(asked, str):
        decay = 0.0 if recipe.weight_decay is None else recipe.weight_decay
        return asked(parameter_groups(model, decay)), recipe.clip
    kind = find_kind(asked)
    rate = default_rate(model, asked) if recipe.learning_rate is None else recipe.learning_rate
    decay = kind.decay if recipe.weight_decay is None else recipe.weight_decay
    clip = kind.clip if recipe.clip is None else recipe.clip
    return kind.make(parameter_groups(model, decay), rate), clip


def moving_average(model: nn.Module, memory: float) -> AveragedModel | None:
    """A moving average of the weights that remembers `memory` steps; None where that is less than two."""
    if memory < 2:
        return None
    average = AveragedModel(
        model,
        multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / memory),  # type: ignore[no-untyped-call]
    )
    return average.requires_grad_(False)
