"""Memory that runs out: said in words, with what to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sned.errors import TrainingError

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


def is_memory_error(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
    )


@contextmanager
def fitting(what: str, device: torch.device, tried: str) -> Iterator[None]:
    """Turn memory that runs out within the block into an error that says what did not fit, and what to try.

    Raises:
        TrainingError: `what` does not fit into the memory of the device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise TrainingError(f"{what} does not fit into the memory of '{device}'. {tried}") from error
