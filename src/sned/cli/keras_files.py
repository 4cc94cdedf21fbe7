"""Keras models named on the command line by their file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sned.errors import CheckpointError, ExampleError, ModelError, NotFoundError

SUFFIXES = frozenset({".keras", ".h5", ".hdf5"})


def keras_model(path: Path) -> Any:
    """Load a Keras model from its file, compiled as it was, on the backend that was chosen, or else on TensorFlow or
    PyTorch.

    Raises:
        NotFoundError: there is no such file, or no Keras.
        ModelError: the file holds classes that are not known, or no model.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file '{path}'. Give a Keras model's .keras or .h5 file.")
    from sned.surgery.keras.backend import imported_keras

    keras = imported_keras()
    try:
        return keras.saving.load_model(path)
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        trouble = error
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ModelError(f"Keras could not load '{path}': {_reason(error)}") from error
    warnings.warn(
        f"The compile settings in '{path}' could not be read, and are not in what is written: {_reason(trouble)}",
        stacklevel=2,
    )
    return model


def keras_inputs(model: Any) -> Any:
    """What a Keras model takes, as Keras notes it: one tensor without values, or a nest of several; None where the
    model does not know, or is none of Keras."""
    from sned.surgery.keras import is_keras

    if model is None or not is_keras(model) or not getattr(model, "inputs", None):
        return None
    return model.inputs[0] if len(model.inputs) == 1 else model.input


def keras_example(inputs: Any) -> Any:
    """Numbers for the inputs of a Keras model, a batch of 2 where that is open.

    Raises:
        ExampleError: another size is open.
    """
    import keras

    return keras.tree.map_structure(lambda one: drawn(_closed(one), one.dtype), inputs)


def _closed(tensor: Any) -> tuple[int, ...]:
    first, *rest = tensor.shape
    if None in rest:
        told = ", ".join("any" if size is None else str(size) for size in tensor.shape)
        shape = ",".join(str(size or 100) for size in (first or 2, *rest))
        raise ExampleError(
            f"The model takes {tensor.name!r} of several sizes, [{told}], so `--example` must say of which: '{shape}', "
            "say; or 'file.py:example' where it takes several inputs. It is traced and timed at that size."
        )
    return (first or 2, *rest)


def drawn(shape: Sequence[int], dtype: str) -> Any:
    """Normal numbers, or zeros and ones where whole ones, flags or texts are wanted; the same each time."""
    import numpy as np

    rng = np.random.default_rng(0)
    if "float" in dtype:
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, 2, shape).astype(str if dtype == "string" else dtype)


def with_keras_weights(model: Any, path: Path) -> Any:
    """Fill the weights of a Keras model in from a `.weights.h5`, `.h5` or `.keras` file.

    Raises:
        CheckpointError: they are not those of this model.
    """
    try:
        model.load_weights(path)
    except Exception as error:
        raise CheckpointError(
            f"The weights in '{path}' are not those of this model: {_reason(error)}"
        ) from error
    return model


def _reason(error: Exception) -> str:
    from sned.surgery.keras.configuration import reason_of

    text = reason_of(error)
    unknown = any(
        told in text
        for told in ("Could not locate", "Could not deserialize", "Cannot deserialize", "Unknown")
    )
    advice = (
        " Decorate the class with `@keras.saving.register_keras_serializable()` and name a file that imports it and "
        "loads the model instead: 'model.py:make_model'."
    )
    return f"{text}.{advice if unknown else ''}"
