"""What this machine says of itself. What it does not say stays None."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")

SIMD_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class CacheLevel:
    """A data cache: its level, its bytes, and how many cores share it (None: not told)."""

    level: int
    size_bytes: int
    shared_by: int | None


def cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@cache
def processor_name() -> str | None:
    """Name the processor as its maker does."""
    return (
        _field("model name")
        or _field("Hardware")
        or _sysctl("machdep.cpu.brand_string")
        or platform.processor()
        or None
    )


def simd(cpu_info: Path = CPU_INFO) -> tuple[str, ...] | None:
    """Name the vector instructions that matter here, among those that the processor has."""
    flags = _field("flags", cpu_info) or _field("Features", cpu_info)
    return None if flags is None else tuple(flag for flag in SIMD_FLAGS if flag in flags.split())


def simd_bits(instructions: tuple[str, ...] | None) -> int | None:
    """Tell how wide a vector register is, going by the instructions that `simd` names."""
    wide = {"avx512f": 512, "avx": 256, "sse4_2": 128, "neon": 128, "asimd": 128}
    return (
        None if instructions is None else next((n for name, n in wide.items() if name in instructions), None)
    )


def clock_ghz(cpu_info: Path = CPU_INFO) -> float | None:
    """Tell the clock of the first core: the highest that it may have, or else the one that it has now."""
    highest = _read(CLOCK)
    if highest is not None and highest.isdecimal():
        return int(highest) / 1e6
    now = _field("cpu MHz", cpu_info)
    return None if now is None else round(float(now) / 1e3, 3)


def memory_bytes() -> int | None:
    """Tell how much main memory there is."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def data_caches(folder: Path = CACHES) -> tuple[CacheLevel, ...] | None:
    """List the caches of the first core that hold data, nearest first."""
    found = [cache for index in sorted(folder.glob("index*")) if (cache := _cache_level(index)) is not None]
    return tuple(sorted(found, key=lambda cache: cache.level)) or None


def _cache_level(index: Path) -> CacheLevel | None:
    kind, level, size = (_read(index / name) for name in ("type", "level", "size"))
    bytes_ = _bytes(size or "")
    if kind not in ("Data", "Unified") or level is None or bytes_ is None:
        return None
    sharers = _read(index / "shared_cpu_list")
    return CacheLevel(int(level), bytes_, _count(sharers) if sharers else None)


def _bytes(size: str) -> int | None:
    found = re.fullmatch(r"(\d+)([KMG]?)", size)
    return None if found is None else int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def _count(cpu_list: str) -> int:
    """How many processors a list such as "0-3,8" names."""
    ends = [[int(end) for end in part.split("-")] for part in cpu_list.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def _field(name: str, cpu_info: Path = CPU_INFO) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", _read(cpu_info) or "", re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _sysctl(name: str) -> str | None:
    if platform.system() != "Darwin":
        return None
    try:
        return (
            subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True).stdout.strip()
            or None
        )
    except (OSError, subprocess.CalledProcessError):
        return None
