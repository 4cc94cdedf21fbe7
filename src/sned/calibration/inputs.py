"""The user's iterator, read once: checked against the example, kept, and handed out again in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.calibration.resume import digest
from sned.calibration.store import RowStore
from sned.errors import CalibrationError, SnedError
from sned.graph.example import Example, Inputs, Leaf, arguments

NO_LABELS = "sned needs no labels: pass the inputs alone, such as `(inputs for inputs, labels in loader)`."


class KeptInputs:
    """Inputs of a network, kept by tensor.

    Args:
        example: what one batch looks like.
        folder: where a large set is spooled to.
    """

    def __init__(self, example: Example, folder: Path | None = None) -> None:
        self._example = example
        self._leaves = example.leaves()
        self._stores = [RowStore(folder) for _ in self._leaves]
        self._fixed: dict[int, Tensor] = {}

    def __len__(self) -> int:
        batched = [store for place, store in enumerate(self._stores) if self._batched(place)]
        return len(batched[0])

    def _batched(self, place: int) -> bool:
        shape = self._leaves[place].shape
        return bool(shape) and shape[0] == self._example.batch

    def add(self, inputs: Any, number: int, room: int) -> None:
        """Check a batch and keep up to `room` of its inputs; `number` names it in errors.

        Raises:
            CalibrationError: it is not what the model takes.
        """
        tensors = self._matched(inputs, number)
        counts = {len(t) for place, t in enumerate(tensors) if self._batched(place)}
        if len(counts) != 1:
            raise CalibrationError(
                f"The tensors of a calibration batch must hold equally many inputs, got {sorted(counts)} in "
                f"batch "
                f"{number}. The first axis is the batch."
            )
        for place, tensor in enumerate(tensors):
            if self._batched(place):
                self._stores[place].append(tensor[:room].clone())  # the next batch may come in its memory
            elif not torch.equal(self._fixed.setdefault(place, tensor.clone()), tensor):
                raise CalibrationError(
                    f"Tensor {place} of the inputs has no batch axis in the example, so it must be the same "
                    f"in every "
                    f"calibration batch, but it changed in batch {number}. Trace with an example whose batch "
                    f"size "
                    "differs from its other sizes."
                )

    def batches(self, size: int, start: int, stop: int) -> Iterator[Inputs]:
        """Inputs `start` to `stop` in batches of `size`, as `Replay.run` and the model take them."""
        for first in range(start, stop, size):
            yield self._read(first, min(first + size, stop))

    def digest(self) -> str:
        """A hash of all inputs."""
        blocks = ((s, at, min(at + 256, len(s))) for s in self._stores for at in range(0, len(s), 256))
        hashes = [digest(store.read(start, stop)) for store, start, stop in blocks]
        return digest(hashes, dict(sorted(self._fixed.items())))

    def _read(self, first: int, last: int) -> Inputs:
        tensors = iter(
            self._stores[place].read(first, last) if self._batched(place) else self._fixed[place].clone()
            for place in range(len(self._leaves))
        )
        args, kwargs = self._example.build(lambda _: next(tensors))
        return kwargs if kwargs and not args else args

    def _matched(self, inputs: Any, number: int) -> list[Tensor]:
        """The tensors of a batch in the order of the example's."""
        like = (self._example.args, self._example.kwargs)
        nest = _ordered(pytree.tree_map(_tensor, arguments(inputs)), like)
        (given, structure), (wanted, expected) = pytree.tree_flatten(nest), pytree.tree_flatten(like)
        if structure != expected:
            raise CalibrationError(self._mismatch(inputs, number))
        for value, leaf in zip(given, wanted, strict=True):
            if not isinstance(leaf, Leaf) and (isinstance(value, Tensor) or value != leaf):
                raise CalibrationError(
                    f"What is no tensor in the example must be the same in every calibration batch, {leaf!r}, but "
                    f"batch {number} has {_nest(value) if isinstance(value, Tensor) else repr(value)}. Trace with an "
                    f"example like the batches."
                )
        return [
            _checked(value, leaf, f"batch {number}", self._example.batch)
            for value, leaf in zip(given, wanted, strict=True)
            if isinstance(leaf, Leaf)
        ]

    def _mismatch(self, inputs: Any, number: int) -> str:
        wanted = _nest(self._example.kwargs if self._example.kwargs else self._example.args)
        got = _nest(inputs)
        text = f"A calibration batch must be what the model takes, {wanted}, but batch {number} is {got}."
        if _labelled(inputs, len(self._example.args)):
            return f"{text} It looks like (inputs, labels): {NO_LABELS}"
        return f"{text} Yield batches nested like `example_inputs`."


def _ordered(value: Any, like: Any) -> Any:
    """A nest with the keys of its dicts in the order of another's."""
    if type(value) is type(like) is dict and value.keys() == like.keys():
        return {key: _ordered(value[key], like[key]) for key in like}
    if type(value) is type(like) and type(value) in (tuple, list) and len(value) == len(like):
        return type(value)(map(_ordered, value, like))
    return value


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _labelled(inputs: Any, positions: int) -> bool:
    """Whether it looks like inputs with labels: one thing more than the model takes, one row an input."""
    if not isinstance(inputs, tuple | list) or len(inputs) != positions + 1 or len(inputs) < 2:
        return False
    first, last = _tensor(inputs[0]), _tensor(inputs[-1])
    if not isinstance(last, Tensor):
        return isinstance(last, int | list | tuple)
    return not isinstance(first, Tensor) or last.ndim == 0 or len(last) == len(first)


def _nest(value: Any) -> str:
    """A nest of tensors in words."""
    value = _tensor(value)
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Leaf):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_nest(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_nest, value)) + ("," if len(value) == 1 else "") + ")"
    return type(value).__name__


def _checked(value: Any, leaf: Leaf, where: str, batch: int) -> Tensor:
    """A tensor as the example has it, floats of another width converted.

    Raises:
        CalibrationError: it has another kind of dtype or another shape, or holds NaN or infinity.
    """
    wanted: torch.dtype = getattr(torch, leaf.dtype)
    if not isinstance(value, Tensor):
        raise CalibrationError(
            f"Calibration inputs must be tensors or NumPy arrays, got {type(value).__name__} in {where}."
        )
    if _kind(value.dtype) != _kind(wanted):
        raise CalibrationError(
            f"Calibration inputs must be {leaf.dtype} like the example, got "
            f"{str(value.dtype).removeprefix('torch.')} "
            f"in {where}. Prepare them as for the model: scaled, normalised and converted."
        )
    free = 1 if leaf.shape and leaf.shape[0] == batch else 0
    if value.ndim != len(leaf.shape) or tuple(value.shape[free:]) != leaf.shape[free:]:
        shape = "".join(f", {n}" for n in leaf.shape[free:]) if free else str(list(leaf.shape))
        raise CalibrationError(
            f"Calibration inputs must have shape {f'[any{shape}]' if free else shape} like the example, got "
            f"{list(value.shape)} in {where}. The first axis is the batch; a single input needs one too."
        )
    # A mask that is the same for all inputs may hold infinity.
    if bool((value.isfinite().logical_not() if free else value.isnan()).any()):
        raise CalibrationError(
            f"Calibration inputs must be finite, but {where} holds NaN or infinity. Check how the inputs are "
            f"prepared."
        )
    return value.to(wanted)


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    if dtype.is_complex:
        return "complex"
    return "float" if dtype.is_floating_point else "integer"


def read_inputs(example: Example, batches: Iterable[Any], limit: int, folder: Path | None) -> KeptInputs:
    """Read up to `limit` inputs from an iterator.

    Raises:
        CalibrationError: it is not an iterator over batches, is empty, or yields what the model does not
        take.
    """
    if isinstance(batches, Tensor | np.ndarray | dict | str):
        raise CalibrationError(
            f"`calibration` must be an iterable over batches, got {_nest(batches)}. "
            "Pass a list with that one batch in it, or a data loader."
        )
    kept = KeptInputs(example, folder)
    for number, inputs in enumerate(_each(batches)):
        kept.add(inputs, number, limit - len(kept))
        if len(kept) >= limit:
            break
    if not len(kept):
        raise CalibrationError(
            "`calibration` must yield at least one batch of inputs, got none. An iterator can be read only "
            "once: "
            "pass a fresh one, or a list; or leave it out, and random inputs are used."
        )
    return kept


def _each(batches: Iterable[Any]) -> Iterator[Any]:
    """The user's batches; what goes wrong in making them is told as such."""
    number = 0
    try:
        for inputs in batches:
            yield inputs
            number += 1
    except SnedError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"`calibration` failed with {type(error).__name__} at batch {number}: {str(error).rstrip('.')}. "
            "Go through it once by itself, and put right what is wrong there."
        ) from error
