"""Pruned networks on disk: one safetensors file with the weights; as JSON metadata the plans that made them and the
masks that they hold.

Nothing in the file is executed: no pickle, no attribute names. Loading cuts a fresh network by the stored plans, which
repairs attributes as `apply` does, and then fills the weights in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sned.errors import CheckpointError, ModelError, PlanError, SnedError
from sned.files import atomic_path
from sned.graph.example import Example
from sned.graph.plan import MOST_BYTES, Plan, pack_mask, unpack_mask
from sned.graph.replay import sizes_of
from sned.graph.trace import check_values, state_of
from sned.surgery.attributes import check_sizes
from sned.surgery.keras import is_keras
from sned.surgery.keras.backend import imported_keras
from sned.surgery.masks import burn_in, hold_masks, masks_of
from sned.surgery.pytorch import PLAN_ATTRIBUTE, cut, graph_for
from sned.surgery.twin import twin
from sned.version import __version__

FORMAT = "2"

COMPILED = "_orig_mod"
"""Under what name `torch.compile` keeps the module that it is given."""


def save(model: Any, path: str | Path) -> None:
    """Write a pruned network: weights and structure in one safetensors file, without pickle.

    Args:
        model: what `sned.apply`, `sned.prune` or `sned.load` returned, trained further or not.
        path: the file to write; it appears whole or not at all. A Keras model is written in Keras's own format, so its
            path ends in ".keras".

    Raises:
        CheckpointError: the network carries no plan, or was traced on inputs that a file cannot describe.
        WriteError: the file cannot be written.
    """
    if is_keras(model):
        from sned.surgery.keras.road import save_keras

        save_keras(model, Path(path))
        return
    plans: tuple[Plan, ...] = getattr(model, PLAN_ATTRIBUTE, ())
    if not plans:
        raise CheckpointError(
            "`save` writes networks that sned pruned, but this one carries no plan. "
            "Save a dense network with `safetensors.torch.save_model`."
        )
    _check_example(plans[0].example)
    model = _as_planned(model, plans[0])
    state, structure = _unique_state(model), json.dumps([plan.to_json() for plan in plans])
    masks = json.dumps(_told_masks(model, plans[-1]))
    metadata = {
        "sha256": _digest(state, structure + masks),
        "format": f"sned {FORMAT}",
        "sned": __version__,
        "torch": torch.__version__,
        "plans": structure,
        "masks": masks,
    }
    with atomic_path(Path(path)) as beside:
        save_file(state, beside, metadata=metadata)


def _check_example(example: Example) -> None:
    """Refuse example inputs that would not come back as they are: `load` traces a network on inputs like them.

    Raises:
        CheckpointError: they are too large, or in containers that JSON does not have.
    """
    size = sum(leaf.size_bytes for leaf in example.leaves())
    if size > MOST_BYTES:
        raise CheckpointError(
            f"The example inputs of a network that is saved must take at most {MOST_BYTES:,} bytes, got {size:,}. "
            "Trace and prune it with fewer of them, such as `x[:8]`."
        )
    if not (_is_json(example.args) and _is_json(example.kwargs)):
        raise CheckpointError(
            "The example inputs of a network that is saved must be in tuples, lists and dicts by text, but some are in "
            "a named tuple or a dict by other keys. Wrap the model in a module that makes that of plain ones."
        )


def _is_json(value: Any) -> bool:
    """Whether a nest comes back from JSON as a network can read it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, tuple | list):
        return not hasattr(value, "_fields") and all(map(_is_json, value))
    return True


def _as_planned(model: nn.Module, plan: Plan) -> nn.Module:
    """The network whose names a plan has: what `torch.compile` wrapped, if that was done after the plan was made."""
    wrapped = model._modules.get(COMPILED)
    return (
        model if wrapped is None or any(name.startswith(f"{COMPILED}.") for name in plan.shapes) else wrapped
    )


def _unique_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor once, under its first name; contiguous, as the format wants it."""
    first: dict[int, str] = {}
    for name, tensor in state_of(model).items():
        first.setdefault(id(tensor), name)
    state = state_of(model)
    return {name: state[name].detach().cpu().contiguous() for name in first.values()}


def _told_masks(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """The masks that a network holds; None for those that are as its last plan has them, which need no second copy."""
    held = {name: mask.cpu().numpy() for name, mask in masks_of(model).items()}
    same = {name for name, mask in plan.masks.items() if name in held and np.array_equal(mask, held[name])}
    return {name: None if name in same else pack_mask(mask) for name, mask in held.items()}


def _digest(state: dict[str, torch.Tensor], structure: str) -> str:
    """A hash of plans and masks, and of every name, dtype, shape and value."""
    digest = hashlib.sha256(structure.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(model: Any, path: str | Path) -> Any:
    """Read a pruned network back, bit for bit.

    Args:
        model: a fresh network of the original structure (its weights do not matter); it is not touched. A ".keras" file
            needs none: give the model where it has classes of your own that are not registered, else None.
        path: what `save` wrote.

    Returns:
        The pruned network, in the precision in which it was saved.

    Raises:
        CheckpointError: the file is missing, damaged, or was saved from another network.
    """
    if not isinstance(path, str | Path):
        raise CheckpointError(
            f"`load` reads a file by its path, got an object of type {type(path).__name__}."
        )
    if is_keras(model) or (model is None and Path(path).suffix == ".keras"):
        imported_keras()
        from sned.surgery.keras.road import load_keras

        return load_keras(model, Path(path))
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"`load` fills a fresh network of the original structure, got an object of type {type(model).__name__}: "
            "`sned.load(make_model(), 'small.safetensors')`."
        )
    check_values(state_of(model))
    tensors, plans, masks = _read(Path(path))
    try:
        small = _cut(model, plans, tensors)
        if masks is not None:
            hold_masks(burn_in(small), masks)
    except PlanError as error:
        raise CheckpointError(f"{Path(path).name} was saved from another network: {error}") from error
    except SnedError as error:
        raise CheckpointError(f"{Path(path).name} cannot be put into this network: {error}") from error
    _fill(small, tensors, Path(path).name)
    return small


def _cut(model: nn.Module, plans: Sequence[Plan], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The fresh network cut down: as it is, or with what leads its pass to where the plans were made, which may be a
    flag that was saved, or the precision of the example."""
    model = _as_planned(model, plans[0])
    own = {name: tensor.detach() for name, tensor in state_of(model).items()}
    cast = own | _in_precision_of(plans[0].example, own)
    first: SnedError | None = None
    for start in ({}, _flags(own, tensors), cast, cast | _flags(cast, tensors)):
        if first is None or any(tensor is not own[name] for name, tensor in start.items()):
            try:
                return _cut_as_it_is(twin(model, own | start) if start else model, plans)
            except (PlanError, ModelError) as error:
                first = first or error
    assert first is not None
    raise first


def _in_precision_of(example: Example, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a network in the dtype of the first such input, where they have another one."""
    dtypes = (getattr(torch, leaf.dtype) for leaf in example.leaves())
    wanted = next((dtype for dtype in dtypes if dtype.is_floating_point), None)
    return {
        name: tensor.to(wanted)
        for name, tensor in own.items()
        if wanted is not None and tensor.is_floating_point() and tensor.dtype != wanted
    }


def _flags(own: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stored tensors of whole numbers, or of one number, that a fresh network has others of."""
    return {
        name: stored[name].to(tensor)
        for name, tensor in own.items()
        if name in stored
        and stored[name].shape == tensor.shape
        and stored[name].is_floating_point() == tensor.is_floating_point()
        and (not tensor.is_floating_point() or tensor.numel() == 1)
        and not torch.equal(stored[name].to(tensor), tensor)
    }


def _cut_as_it_is(model: nn.Module, plans: Sequence[Plan]) -> nn.Module:
    for plan in plans:
        graph = graph_for(model, plan)
        model = cut(graph.model, graph, plan)
        check_sizes(model, graph, sizes_of(graph, plan))
    return model


def _read(path: Path) -> tuple[dict[str, torch.Tensor], list[Plan], dict[str, torch.Tensor] | None]:
    """Tensors, plans, and the masks that are held: None where a file does not say, and the plans do."""
    try:
        with safetensors.safe_open(path, framework="pt") as held:
            metadata = held.metadata() or {}
        if metadata.get("format") != f"sned {FORMAT}":
            raise CheckpointError(
                f"{path.name} must be a file that this version's `sned.save` wrote (format 'sned {FORMAT}'), got "
                f"{metadata.get('format')!r}. Save the network again, with a plan made anew if need be."
            )
        tensors = load_file(path)
        masks = metadata.get("masks", "")
        if _digest(tensors, metadata["plans"] + masks) != metadata.get("sha256"):
            raise CheckpointError(
                f"{path.name} was altered: its values or its plans are not those that were saved. Save it again."
            )
        plans = [Plan.from_json(text) for text in json.loads(metadata["plans"])]
        if not plans:
            raise ValueError("it holds no plan")
        return tensors, plans, _read_masks(json.loads(masks), plans[-1]) if masks else None
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}. Check the path.") from error
    except (
        safetensors.SafetensorError,
        PlanError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path.name} is damaged ({error}). Save the network again, or fetch the file anew."
        ) from error


def _read_masks(told: dict[str, Any], plan: Plan) -> dict[str, torch.Tensor]:
    """What `_told_masks` told."""
    masks = {name: plan.masks[name] if mask is None else unpack_mask(mask) for name, mask in told.items()}
    return {name: torch.from_numpy(mask) for name, mask in masks.items()}


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Copy stored values in, after every name and shape was found right; in the precision that was stored."""
    state = state_of(model)
    expected = _unique_state(model)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(f"{name} holds no tensor {missing[0]!r}; it was saved from another network.")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{name} holds a tensor {extra[0]!r} that this network lacks.")
    for key, value in tensors.items():
        own = state[key]
        floats = own.is_floating_point() and value.is_floating_point()
        if own.shape != value.shape or (own.dtype != value.dtype and not floats):
            raise CheckpointError(
                f"{name}: tensor {key!r} must have shape {tuple(own.shape)} and dtype {own.dtype}, got "
                f"{tuple(value.shape)} and {value.dtype}."
            )
    with torch.no_grad():
        for key, value in tensors.items():
            state[key].data = state[key].data.to(value.dtype)
            state[key].copy_(value)
