"""What is asked of an export, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sned.errors import ExampleError, ModelError, UserError
from sned.export.target import TARGETS, Target, find_target
from sned.graph.example import Inputs, describe, tensors_in
from sned.surgery.keras import is_keras_model

TOLERANCE = 1e-4
"""In float32, rounding on a deep network stays a hundred times below this; a wrong graph does not."""

HALVES: Mapping[torch.dtype, float] = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""What an element may be off where the model's own weights are coarser than float32: some ten roundings."""

_ZEROS = 0.3
"""Share of zeros in the weights from which a network counts as masked."""


def sparse_form(
    target: Target, asked: bool | None, models: Iterable[nn.Module]
) -> tuple[bool, tuple[str, ...]]:
    """Whether zeros are written as such, and what is said about it."""
    if asked and not target.sparse:
        raise UserError(
            f"{target.title} has no form for zeros inside tensors: they would be stored and multiplied like any "
            "other number. Leave `sparse` out, or remove whole channels with `sned.prune`."
        )
    zeros = max(map(_share_of_zeros, models))
    if asked and not zeros:
        return False, ("No weight is stored sparse: none is zero.",)
    if asked is False or (not asked and zeros < _ZEROS):
        return False, ()
    if not target.sparse:
        return False, (f"{target.title} has no form for zeros: they gain neither size nor time here.",)
    return True, ()  # what they give is said by the writer, of what it stored


def _share_of_zeros(model: nn.Module) -> float:
    """Share of zeros among the weights of more than one axis."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    count = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / count if count else 0.0


def default_tolerance(models: Iterable[nn.Module]) -> float:
    """How far an element of an fp32 file may be off, as a fraction of the largest magnitude in its output."""
    weights = (weight for model in models for weight in model.parameters())
    return max((HALVES.get(weight.dtype, TOLERANCE) for weight in weights), default=TOLERANCE)


def check_numbers(*, tolerance: float | None = None, runs: int = 0, threads: int = 1) -> None:
    """Raise `UserError` where a number cannot be meant."""
    if tolerance is not None and not tolerance >= 0:
        raise UserError(f"`tolerance` must be 0 or more, or None for the default, got {tolerance!r}.")
    if runs < 0:
        raise UserError(f"`runs` must be 0 or more, got {runs!r}. 0 times nothing.")
    if threads < 1:
        raise UserError(f"`threads` must be 1 or more, got {threads!r}.")


def check_models(models: Mapping[str, Any]) -> None:
    """Raise where networks in one file are not called by words (`UserError`), or are none (`ModelError`)."""
    if not isinstance(models, Mapping):
        raise UserError(
            f"`models` must be a mapping of names to networks, got {type(models).__name__}. "
            "Give {'fast': small, 'good': large}."
        )
    if not models:
        raise UserError("`models` must name at least one network, got none.")
    wrong = [name for name in models if not _is_word(name) and not (name == "" and len(models) == 1)]
    if wrong:
        raise UserError(
            f"Networks in one file are called by names of letters, digits and underscores, got {wrong[0]!r}."
        )
    for model in models.values():
        if not isinstance(model, nn.Module) and not is_keras_model(model):
            got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise ModelError(
                f"`model` must be a module of PyTorch or a Keras model, got {got}. Build the network, with its "
                "weights, and give that."
            )


def _is_word(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def check_example(example: Inputs) -> None:
    """Raise `ModelError` or `ExampleError` where inputs hold nothing, or what no runtime can be given."""
    if not describe(example).batch:
        raise ExampleError("`example_inputs` must hold at least one row, got a batch of 0.")
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors_in(example)):
        raise ExampleError(
            "Files take no inputs in bfloat16, which runtimes compute in on few devices. Export `model.float()` with "
            "inputs in float32; `quantize` makes the file small."
        )


def check_options(target: Target, options: Mapping[str, bool]) -> None:
    """Raise `UserError` where an option is used that the target has not; `options` says of each whether it is."""
    for name, used in options.items():
        if used and name not in target.options:
            able = ", ".join(other for other in TARGETS if name in find_target(other).options)
            raise UserError(f"`{name}` is for {able}, and {target.title} has none. Leave it out.")


def refuse_nan(outputs: tuple[Tensor, ...]) -> None:
    """Raise `ModelError` where a model returns NaN."""
    if any(bool(output.isnan().any()) for output in outputs):
        raise ModelError(
            "The model returns NaN on the example inputs, so there is nothing to compare an export with. "
            "Look for NaN in the weights (a training that diverged) or in the inputs."
        )


def path_for(out: str | Path, target: Target) -> Path:
    """Where to write; the runtimes' own tools go by the suffix."""
    path = Path(out)
    if not path.name:
        raise UserError(f"`out` must name a file, got {str(out)!r}. Write to 'NAME{target.suffix}'.")
    if path.suffix != target.suffix:
        raise UserError(
            f"A file of {target.title} is called `NAME{target.suffix}`, got '{path}'. "
            f"Write to '{path.with_suffix(target.suffix)}'."
        )
    return path


def refuse_open_batch(target: Target) -> None:
    """Raise `UserError` where a runtime's files take one batch size and an open one is asked for."""
    if not target.dynamic_batch:
        able = ", ".join(name for name in TARGETS if find_target(name).dynamic_batch)
        raise UserError(
            f"{target.title} files are written for one batch size, and `dynamic_batch` asks for any. Leave it out and "
            f"give an example of the batch that you will run, or export to one of {able}."
        )
