import mmap
import sys
from pathlib import Path

import pytest
import torch

from sned import memory

resource = pytest.importorskip("resource", reason="Windows has no `resource`")

LARGE = 48 << 20
"""Bytes: above every size that glibc takes from its heap by itself."""

pytestmark = pytest.mark.skipif(
    not hasattr(memory._glibc(), "trim"), reason="the C library of this machine has no `mallinfo2`"
)


def resident() -> int:
    pages = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)
    return int(pages.split()[1]) * 1024


def filled(count: int) -> list[torch.Tensor]:
    return [torch.ones(LARGE // 4) for _ in range(count)]


def faults(rounds: int) -> int:
    """Pages that the system had to hand out while large tensors came and went."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        filled(4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_that_is_freed_serves_the_next_tensor() -> None:
    anew = faults(8)
    with memory.reused():
        faults(4)  # until there is room for all
        # Once more the heap may grow around what other tests left there.
        assert faults(8) <= LARGE // mmap.PAGESIZE < anew / 8


def test_memory_that_is_freed_goes_back_at_the_end() -> None:
    before = resident()
    with memory.reused():
        held = filled(8)
        del held
        assert resident() > before + 6 * LARGE
    assert resident() < before + 2 * LARGE


def test_holes_are_given_back_once_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SPARE", 4 * LARGE)
    library = memory._glibc()
    assert library is not None
    with memory.reused():
        library.trim()  # also of what other tests left
        before = resident()
        held = filled(3)
        del held
        memory.trim()
        assert resident() > before + 2 * LARGE, "a little is kept"
        held = filled(8)
        del held
        memory.trim()
        assert resident() < before + 2 * LARGE, "much is not"


def test_settings_are_put_back_where_the_block_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    library = memory._glibc()
    assert library is not None
    monkeypatch.setattr(library, "mallopt", lambda *setting: told.append(setting))
    with pytest.raises(KeyError), memory.reused():
        raise KeyError
    assert (memory.M_MMAP_MAX, 0) in told[:2]
    assert told[2:] == [
        (memory.M_MMAP_MAX, 1 << 16),
        (memory.M_MMAP_THRESHOLD, 32 << 20),
        (memory.M_TRIM_THRESHOLD, 64 << 20),
    ]


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._glibc.__wrapped__() is None
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.reused():
        memory.trim()
