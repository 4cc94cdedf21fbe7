"""Keras models named on the command line by their file."""

import warnings
from pathlib import Path
from typing import Any

from sned.errors import CheckpointError, ModelError, NotFoundError

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
