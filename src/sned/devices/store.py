"""Measured op times, kept between runs: one JSON file for each runtime, processor and number of threads."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sned.devices.layout import Family
from sned.errors import WriteError
from sned.files import atomic_write_text

FORMAT = 5
"""Raised whenever what is measured under a key changes, so that old figures are not mistaken for new ones."""


@dataclass(frozen=True)
class Environment:
    """What a measured time depends on, besides the op."""

    runtime: str
    processor: str
    threads: int

    @property
    def key(self) -> str:
        """A short name for files."""
        text = json.dumps([FORMAT, self.runtime, self.processor, self.threads])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def key_of(family: Family, point: Sequence[float]) -> str:
    """The name of a measured point in a store."""
    return json.dumps([family.recipe, dict(family.statics), [float(width) for width in point]])


@dataclass
class Store:
    """Op times in yardsticks, by op and widths; read from a file when opened and written back by `save`.

    A file that is missing, damaged or of another environment counts as empty; one that cannot be written
    costs a new measurement next time, nothing else.
    """

    path: Path
    environment: Environment
    yardsticks: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, environment: Environment, folder: Path | None = None) -> Store:
        """Open the store of an environment in `folder`, by default the user's cache folder."""
        path = (folder or cache_folder()) / f"ops-{environment.key}.json"
        return cls(path, environment, _read(path, environment))

    def save(self) -> None:
        """Write everything known, whole or not at all."""
        held = {"format": FORMAT, **vars(self.environment), "yardsticks": self.yardsticks}
        with suppress(WriteError):
            atomic_write_text(self.path, json.dumps(held, indent=0))


def _read(path: Path, environment: Environment) -> dict[str, float]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    expected = {"format": FORMAT, **vars(environment)}
    if not isinstance(held, dict) or any(held.get(name) != value for name, value in expected.items()):
        return {}
    times = held.get("yardsticks")
    if not isinstance(times, dict):
        return {}
    return {key: float(t) for key, t in times.items() if isinstance(t, int | float) and 0 <= t < float("inf")}


def cache_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Name the folder where this user's applications keep what they can make again."""
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"]) / "sned"
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sned" / "Cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sned"
    return Path.home() / ".cache" / "sned"
