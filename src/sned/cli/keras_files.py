"""Keras models named on the command line by their file."""

import os
import sys
from pathlib import Path
from typing import Any

from sned.errors import CheckpointError, ModelError, NotFoundError

SUFFIXES = frozenset({".keras", ".h5", ".hdf5"})

HOME = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
"""Where a user may have set a backend."""


def keras_model(path: Path) -> Any:
    """Load a Keras model from its file, on the backend that was set, or else on PyTorch's.

    Raises:
        NotFoundError: there is no such file, or no Keras.
        ModelError: the file holds classes that are not known, or no model.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file '{path}'. Give a Keras model's .keras or .h5 file.")
    keras = imported_keras()
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ModelError(f"Keras could not load '{path}': {_reason(error)}") from error


def imported_keras() -> Any:
    """Keras, on the backend that was set, or else on PyTorch's, which sned needs anyway.

    Raises:
        NotFoundError: it, or the backend that was set, is not installed.
    """
    if "keras" not in sys.modules and not HOME.is_file():
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if error.name == "keras":
            raise NotFoundError("This model needs Keras: pip install 'sned[keras]'.") from error
        raise NotFoundError(
            f"Keras is set to the backend '{backend}', which is not installed ({error}). Install it, or set "
            "KERAS_BACKEND=torch: the pruned model runs on any backend."
        ) from error
    return keras


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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    unknown = "Could not locate class" in text or "Unknown layer" in text or "Unknown object" in text
    advice = (
        " Decorate the class with `@keras.saving.register_keras_serializable()` and name a file that imports it and "
        "loads the model instead: 'model.py:make_model'."
    )
    return f"{text[:300]}{advice if unknown else ''}"
