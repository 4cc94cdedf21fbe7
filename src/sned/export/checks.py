"""What is asked of an export, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sned.errors import ModelError, UserError
from sned.export.target import TARGETS, Target, find_target

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
    if asked is False or (not asked and all(_share_of_zeros(model) < _ZEROS for model in models)):
        return False, ()
    if not target.sparse:
        return False, (f"{target.title} has no form for zeros: they gain neither size nor time here.",)
    return True, (target.sparse,)


def _share_of_zeros(model: nn.Module) -> float:
    """Share of zeros among the weights of more than one axis."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    count = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / count if count else 0.0


def default_tolerance(models: Iterable[nn.Module]) -> float:
    """How far an element of an fp32 file may be off, as a fraction of the largest magnitude in its output."""
    weights = (weight for model in models for weight in model.parameters())
    return max((HALVES.get(weight.dtype, TOLERANCE) for weight in weights), default=TOLERANCE)


def refuse_nan(outputs: tuple[Tensor, ...]) -> None:
    """Raise `ModelError` where a model returns NaN."""
    if any(bool(output.isnan().any()) for output in outputs):
        raise ModelError(
            "The model returns NaN on the example inputs, so there is nothing to compare an export with. "
            "Look for NaN in the weights (a training that diverged) or in the inputs."
        )


def check_names(models: Mapping[str, nn.Module]) -> None:
    """Raise `UserError` where networks in one file are not called by words."""
    if not models:
        raise UserError("`models` must name at least one network, got none.")
    wrong = [name for name in models if not name.isidentifier() and not (name == "" and len(models) == 1)]
    if wrong:
        raise UserError(
            f"Networks in one file are called by names of letters, digits and underscores, got {wrong[0]!r}."
        )


def path_for(out: str | Path, target: Target) -> Path:
    """Where to write; the runtimes' own tools go by the suffix."""
    path = Path(out)
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
