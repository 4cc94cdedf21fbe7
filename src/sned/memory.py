"""Memory that is free, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Give back what freed tensors left between others, where the C library can (glibc); some milliseconds.

    Networks of many sizes leave holes that no other tensor fits into: without this a long run holds up to twice the
    memory that it uses.
    """
    if (function := _malloc_trim()) is not None:
        function(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
