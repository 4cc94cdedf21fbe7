"""Tensors of any framework as PyTorch's, and back as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor

from sned.errors import CalibrationError, ExampleError

ROWS = 32
"""Inputs in each batch that a whole array is cut into."""


def to_tensor(value: Any) -> Tensor:
    """A number, an array, or a tensor of any framework as a PyTorch tensor on the CPU."""
    if isinstance(value, Tensor):
        return value
    plain = isinstance(value, np.ndarray | int | float)
    array = np.asarray(value if plain else keras.ops.convert_to_numpy(value))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"of dtype {array.dtype}")
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


def to_array(tensor: Tensor) -> Any:
    """A tensor as an array that a Keras variable takes."""
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


def tensors(nest: Any, what: str = "`example_inputs`") -> Any:
    """Inputs as `model.predict` takes them, every array in them a PyTorch tensor.

    Raises:
        ExampleError: something in them is no array of numbers.
    """
    try:
        return keras.tree.map_structure(to_tensor, nest)
    except (TypeError, ValueError) as error:
        raise ExampleError(
            f"{what} must be an array of numbers, or a list or dict of arrays, as `model.predict` takes them, "
            f"got {type(nest).__name__} ({error})."
        ) from error


def batches(given: Any, example: Any) -> Iterator[Any]:
    """Batches of inputs for calibration from whatever `fit` takes, without labels.

    Args:
        given: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader`, any iterable of batches, or an
            array with all inputs (for several inputs a list or dict of arrays, as `model.predict` takes them).
        example: inputs of the model. A batch that is no nest like it is read as Keras reads it: inputs, perhaps labels,
            perhaps weights; these are left aside.

    Yields:
        A tuple of one: the inputs of a batch, as `model(inputs)` takes them.

    Raises:
        CalibrationError: it cannot be iterated over, or holds something else than arrays.
    """
    wanted = _structure(example)
    try:
        for number, batch in enumerate(_iterated(given, wanted)):
            is_inputs = (
                _structure(batch) == wanted
                or not isinstance(batch, tuple | list)
                or len(batch) not in (1, 2, 3)
            )
            inputs = tensors(batch if is_inputs else batch[0], f"Calibration batch {number}")
            if _structure(inputs) == wanted:  # a dataset yields tuples where the example has lists
                inputs = keras.tree.pack_sequence_as(example, keras.tree.flatten(inputs))
            yield (inputs,)
    except ExampleError as error:
        raise CalibrationError(str(error)) from error


def _structure(nest: Any) -> Any:
    """A nest without what is in it; lists and tuples are the same to Keras."""
    if isinstance(nest, dict):
        return {key: _structure(value) for key, value in nest.items()}
    return [_structure(value) for value in nest] if isinstance(nest, tuple | list) else None


def _iterated(given: Any, wanted: Any) -> Iterable[Any]:
    if isinstance(given, keras.utils.PyDataset):
        return (
            (given[i] for i in range(given.num_batches)) if given.num_batches is not None else _endless(given)
        )
    listed = isinstance(given, tuple | list) and _structure(given) != wanted
    flat = [] if listed else keras.tree.flatten(given)
    if flat and all(map(_is_array, flat)):
        return _cut(given)
    try:
        return iter(given)  # type: ignore[no-any-return]
    except TypeError as error:
        raise CalibrationError(
            "`calibration` must be a tf.data.Dataset, a keras.utils.PyDataset, an array, or an iterable of batches, "
            f"got {type(given).__name__}."
        ) from error


def _endless(given: Any) -> Iterator[Any]:
    """A `PyDataset` without a length."""
    return (given[i] for i in itertools.count())


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor) or bool(keras.ops.is_tensor(value))


def _cut(arrays: Any) -> Iterator[Any]:
    flat = keras.tree.flatten(arrays)
    for first in range(0, len(flat[0]), ROWS):
        yield keras.tree.map_structure(lambda array, at=first: array[at : at + ROWS], arrays)
