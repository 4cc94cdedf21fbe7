import mmap
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers in a process of its own, where no other test has left holes in the heap."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(function, *arguments).result()


def faults(keep: bool) -> int:
    """Pages that the system had to hand out while large tensors came and went, once there was room for all."""
    with memory.reused() if keep else nullcontext():
        for _ in range(8):  # small things settle between the large ones first
            filled(4)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            filled(4)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def test_memory_that_is_freed_serves_the_next_tensor() -> None:
    anew = 8 * 4 * LARGE // mmap.PAGESIZE
    assert alone(faults, False) >= anew
    assert alone(faults, True) <= anew / 16


def grown(counts: Sequence[int], spare: int | None) -> list[int]:
    """Bytes that this process holds more than before: each time that so many tensors went, and after the block."""
    found = []
    if spare is not None:
        memory.SPARE = spare
    filled(1)  # threads and the like are there from now on
    before = resident()
    with memory.reused():
        for count in counts:
            filled(count)
            if spare is not None:
                memory.trim()
            found.append(resident() - before)
    return [*found, resident() - before]


def test_memory_that_is_freed_goes_back_at_the_end() -> None:
    inside, after = alone(grown, [8], None)
    assert inside > 6 * LARGE
    assert after < LARGE


def test_holes_are_given_back_once_they_are_large() -> None:
    little, much, _ = alone(grown, [3, 8], 4 * LARGE)
    assert little > 2 * LARGE, "a little is kept"
    assert much < LARGE, "much is not"


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
