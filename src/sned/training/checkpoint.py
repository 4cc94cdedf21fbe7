"""A run on disk: one file, whole or not there, from which it goes on to bitwise the same result."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sned.errors import CheckpointError
from sned.files import atomic_path
from sned.graph.trace import state_of
from sned.surgery.masks import hold_masks, masks_of
from sned.surgery.pytorch import PLAN_ATTRIBUTE

FORMAT = 1
NAME = "checkpoint.pt"
"""The file inside a run's folder."""


def identity(model: nn.Module) -> dict[str, str]:
    """What tells networks apart whose weights must not be mixed up: class, shapes, the plans that cut it, its zeros."""
    plans = getattr(model, PLAN_ATTRIBUTE, ())
    shapes = "; ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in state_of(model).items())
    removed = [sorted((name, list(units)) for name, units in plan.removed.items()) for plan in plans]
    bypassed = [list(plan.bypassed) for plan in plans]
    zeros = sha256()
    for name, mask in sorted(masks_of(model).items()):
        zeros.update(name.encode() + mask.cpu().numpy().tobytes())
    told = {"model": type(model).__name__, "shapes": shapes, "plan": repr((removed, bypassed))}
    return {**told, "zeros": zeros.hexdigest()}


def save_run(folder: Path, data: Mapping[str, Any]) -> None:
    """Write a run's state: tensors and plain values only.

    Raises:
        WriteError: the file cannot be written; the one before it is still whole.
    """
    with atomic_path(folder / NAME) as beside:
        torch.save({"format": FORMAT, **data}, beside)


def load_run(folder: Path) -> dict[str, Any] | None:
    """Read a run's state on the CPU, without running code; None where there is none yet.

    Raises:
        CheckpointError: the file is damaged, or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"'{path}' is damaged ({str(error).splitlines()[0]}). Remove it to begin anew."
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(
            f"'{path}' is not a checkpoint that this version of sned reads (format {FORMAT}). Remove it to begin anew."
        )
    return data


def check_same(
    found: Mapping[str, Mapping[str, str]], asked: Mapping[str, Mapping[str, str]], path: Path
) -> None:
    """Refuse to go on with a run of another network or recipe.

    Raises:
        CheckpointError: says the first thing that differs.
    """
    for part, values in asked.items():
        for name, value in values.items():
            was = found.get(part, {}).get(name)
            if was != value:
                raise CheckpointError(_differs(part, name, was, value, path))


def _differs(part: str, name: str, was: str | None, now: str, path: Path) -> str:
    what = {
        "plan": "its network was cut by another plan",
        "shapes": "its network has tensors of other shapes",
        "model": f"its network is a {was}, not a {now}",
        "zeros": "its network has its zeros in other places",
    }.get(name, f"its {name} was {was}, not {now}")
    return (
        f"A run goes on from a checkpoint of the same {'network' if part == 'network' else 'run'}, but in '{path}' "
        f"{what}. Give another folder, or remove that one to begin anew; nothing was changed."
    )


def weights_of(model: nn.Module) -> dict[str, Any]:
    """A copy on the CPU of parameters, buffers and masks."""
    state = {name: _copied(tensor) for name, tensor in state_of(model).items()}
    return {"state": state, "masks": {name: _copied(mask) for name, mask in masks_of(model).items()}}


def put_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Put weights and masks back, in place: optimisers and hooks keep their hold on the parameters."""
    own = state_of(model)
    with torch.no_grad():
        for name, value in weights["state"].items():
            own[name].copy_(value)
    device = next((t.device for t in own.values()), torch.device("cpu"))
    hold_masks(model, {name: mask.to(device) for name, mask in weights["masks"].items()})


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
