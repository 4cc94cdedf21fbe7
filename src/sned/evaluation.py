"""A network's quality by the user's own measure."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from sned.errors import UserError

Evaluate: TypeAlias = Callable[[Any], float]
"""A user's measure of a network: higher is better; a fraction in [0, 1] is shown as a percentage."""


def evaluated(model: Any, evaluate: Evaluate) -> float:
    """Ask the user's `evaluate` about a model in evaluation mode; its modes are put back.

    Raises:
        UserError: `evaluate` failed, or did not return a finite number.
    """
    mode = evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.no_grad():
        try:
            value = evaluate(model)
        except Exception as error:
            raise UserError(
                f"`evaluate` failed with {type(error).__name__}: {error}. It is called with the model and "
                "returns a number, higher for a better model."
            ) from error
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(_not_a_number(value)) from error
    if not math.isfinite(number):
        raise UserError(_not_a_number(value))
    return number


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the block; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _not_a_number(value: object) -> str:
    return f"`evaluate` must return a finite number, higher for a better model, got {value!r}."
