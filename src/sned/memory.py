"""How the C library holds memory: what is freed is used again, and what stays free is given back to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

BUDGET = 2**28
"""Bytes of activations that a stage holds at once. Spools, the way back of gradients, and what may lie free are cut to
it, so that a run keeps within some such budgets beside the model itself."""

SPARE = BUDGET * 3 // 4
"""Bytes that may lie free between what is in use."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""What `mallopt` calls its settings (glibc, malloc.h)."""


class _Mallinfo(ctypes.Structure):
    """What `mallinfo2` answers: bytes held from the heap and in maps of their own, and how they are used."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


class _Glibc:
    """The C library's own functions, and the bytes that this process held unused when it was last trimmed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.mallopt, self._malloc_trim = library.mallopt, library.malloc_trim
        self._mallinfo = library.mallinfo2
        self._mallinfo.restype = _Mallinfo
        self._beside = self._unused()

    def trim(self, spare: int = 0) -> None:
        """Give back what is free, where that became more than `spare` bytes since the last time."""
        if self._unused() > self._beside + spare:
            self._malloc_trim(0)
            self._beside = self._unused()

    def _unused(self) -> int:
        """Bytes held but not allocated: code and the like, and holes."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        info = self._mallinfo()
        return pages * mmap.PAGESIZE - int(info.uordblks) - int(info.hblkhd)


def trim() -> None:
    """Give back what freed tensors left between others, where that is much and the C library can (glibc).

    Networks of many sizes leave holes that no other tensor fits into: without this a long run holds up to twice the
    memory that it uses.
    """
    if (library := _glibc()) is not None:
        library.trim(SPARE)


@contextmanager
def reused() -> Iterator[None]:
    """Keep freed memory for the next tensor instead of mapping each large one anew, where the C library can (glibc).

    A map of its own comes in empty pages, and each is faulted in: for the activations of a large network that takes as
    long as a cheap op. Afterwards the settings are those that glibc comes to by itself.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, 1 << 16)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        library.trim()


@cache
def _glibc() -> _Glibc | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return _Glibc(library) if hasattr(library, "mallinfo2") else None
