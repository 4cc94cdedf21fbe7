"""What a machine says of itself, on made-up machines."""

from pathlib import Path

import pytest

from sned.devices import machine
from sned.devices.machine import CacheLevel, data_caches, simd


def cache_index(folder: Path, number: int, **files: str) -> None:
    index = folder / f"index{number}"
    index.mkdir(parents=True)
    for name, text in files.items():
        (index / name).write_text(text + "\n", encoding="utf-8")


def test_caches_that_hold_data_nearest_first(tmp_path: Path) -> None:
    cache_index(tmp_path, 0, level="2", type="Unified", size="2048K", shared_cpu_list="0-1")
    cache_index(tmp_path, 1, level="1", type="Data", size="48K", shared_cpu_list="0")
    cache_index(tmp_path, 2, level="1", type="Instruction", size="32K", shared_cpu_list="0")
    cache_index(tmp_path, 3, level="3", type="Unified", size="24M", shared_cpu_list="0-3,8")
    assert data_caches(tmp_path) == (
        CacheLevel(1, 48 << 10, 1),
        CacheLevel(2, 2 << 20, 2),
        CacheLevel(3, 24 << 20, 5),
    )


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    assert data_caches(tmp_path / "missing") is None
    cache_index(tmp_path, 0, level="1", type="Data", size="strange")
    cache_index(tmp_path, 1, level="2", type="Unified", size="1M")
    assert data_caches(tmp_path) == (CacheLevel(2, 1 << 20, None),)
    assert simd(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 fma avx512f\n", ("sse4_2", "avx", "avx2", "fma", "avx512f")),
        ("Features\t: fp asimd asimdhp asimddp\n", ("asimd", "asimdhp", "asimddp")),
        ("model name : x\n", None),
    ],
)
def test_vector_instructions(tmp_path: Path, text: str, found: tuple[str, ...] | None) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text, encoding="utf-8")
    assert simd(path) == found


def test_this_machine() -> None:
    assert machine.cores() >= 1
    memory = machine.memory_bytes()
    assert memory is None or memory > 1 << 28


def test_the_width_of_vectors_follows_from_the_instructions() -> None:
    assert machine.simd_bits(("avx", "avx2", "avx512f")) == 512
    assert machine.simd_bits(("sse4_2", "avx", "avx2")) == 256
    assert machine.simd_bits(("asimd",)) == 128
    assert machine.simd_bits(()) is None
    assert machine.simd_bits(None) is None


def test_the_clock_is_the_highest_or_the_one_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info, highest = tmp_path / "cpuinfo", tmp_path / "cpuinfo_max_freq"
    monkeypatch.setattr(machine, "CLOCK", highest)
    assert machine.clock_ghz(info) is None
    info.write_text("cpu MHz\t\t: 2599.998\n", encoding="utf-8")
    assert machine.clock_ghz(info) == 2.6
    highest.write_text("4200000\n", encoding="utf-8")
    assert machine.clock_ghz(info) == 4.2
