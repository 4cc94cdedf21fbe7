"""Which backend Keras gets where nobody chose one, and Keras on it."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sned.errors import NotFoundError

HOME = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
"""Where a user may have set a backend; Keras writes "tensorflow" there by itself when it is first imported."""


def choose_backend() -> None:
    """Let Keras run on PyTorch, which sned needs anyway, where no backend was chosen and TensorFlow is not installed.

    TensorFlow in the file of settings is no choice: Keras writes it there by itself.
    """
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ:
        return
    if _set_in_file() in (None, "tensorflow") and find_spec("tensorflow") is None:
        os.environ["KERAS_BACKEND"] = "torch"


def _set_in_file() -> Any:
    try:
        return json.loads(HOME.read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def imported_keras() -> Any:
    """Keras, on the backend that was chosen, or else on TensorFlow or PyTorch.

    Raises:
        NotFoundError: it, or the backend that was chosen, is not installed.
    """
    choose_backend()
    try:
        import keras
    except (ImportError, ValueError) as error:
        if getattr(error, "name", None) == "keras":
            raise NotFoundError("This model needs Keras: pip install 'sned[keras]'.") from error
        backend = os.environ.get("KERAS_BACKEND") or _set_in_file() or "tensorflow"
        raise NotFoundError(
            f"Keras is set to the backend '{backend}', which cannot be imported ({error}). Install it, or set the "
            "environment variable KERAS_BACKEND=torch: the pruned model runs on any backend."
        ) from error
    return keras
