"""What long work has found so far, kept in a folder, so that a run that was interrupted goes on from there.

Each stage has one place, which is replaced as a whole every few seconds and once at the end, never more often
than a twentieth of the time allows. A place is named by all that its contents follow from (structure, weights,
inputs, versions, what was asked of the stage), so that what is found there is what would be computed again.
Stages that are done sooner than the first save write nothing.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sned.errors import WriteError
from sned.files import atomic_path
from sned.graph.ir import Graph
from sned.graph.replay import State
from sned.version import __version__

INTERVAL = 5.0
"""Seconds that a stage runs before it is first saved, and between two times at least."""

SHARE = 20
"""A save waits until this many times what the last one took has gone by."""


class Resume:
    """Where the stages of one run keep what they have found.

    Args:
        folder: made when there is something to keep; None keeps nothing.
        key: of all that the run works on (`identity`).
    """

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self.folder = folder
        self._key = key
        self.told: list[str] = []

    def keyed(self, key: str) -> Resume:
        """The same folder for a run on something else; what was resumed is told in one place."""
        other = Resume(self.folder, key)
        other.told = self.told
        return other

    def slot(self, stage: str, *asked: Any) -> Slot:
        """The place of a stage; `asked` is what else its results follow from (numbers, names, arrays, plans)."""
        place = self.place(stage, *asked)
        return Slot(place and place.with_suffix(".pt"))

    def place(self, stage: str, *asked: Any) -> Path | None:
        """A path of the stage's own, for `slot` or a folder; None where nothing is kept."""
        return self.folder and self.folder / f"{stage}-{digest(self._key, stage, *asked)}"

    def resumed(self, stage: str, done: float, total: float) -> None:
        """Note that a stage went on from `done` of `total`, for the report."""
        self.told.append(f"{stage} ({'all' if done >= total else f'{done:,.0f} of'} {total:,.0f})")

    @property
    def note(self) -> str:
        """What was taken over from an interrupted run, in a sentence; empty if nothing was."""
        return f"Resumed what an interrupted run had done: {', '.join(self.told)}." if self.told else ""

    def clear(self) -> None:
        """Remove everything: the run is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


NOTHING = Resume()
"""Keeps nothing."""


class Slot:
    """The place of one stage.

    Attributes:
        found: what an earlier run left there, by name; empty where nothing usable was.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.found: dict[str, Tensor] = _read(path)
        self._wait = INTERVAL
        self._last = time.monotonic()

    def offer(self, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep what `make` gives, if it is time to."""
        if self._path is None or time.monotonic() - self._last < self._wait:
            return
        start = time.monotonic()
        # Without room the next run starts over, which is no reason to stop this one.
        with suppress(WriteError), atomic_path(self._path) as beside:
            torch.save(dict(make()), beside)
        self._last = time.monotonic()
        self._wait = max(INTERVAL, SHARE * (self._last - start))

    def close(self, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep the whole result of a stage that took long enough to be worth it."""
        self._wait = INTERVAL
        self.offer(make)


def _read(path: Path | None) -> dict[str, Tensor]:
    if path is None or not path.is_file():
        return {}
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return {}  # damaged by something else than an interruption: computed again
    return found if isinstance(found, dict) else {}


def identity(graph: Graph, state: State, inputs: str, *asked: Any) -> str:
    """A key for all that calibration follows from: ops, weights, inputs (by their digest), versions, machine."""
    ops = [(op.target, op.args, dict(op.kwargs), op.outputs) for op in graph.ops]
    constants = {str(number): graph.constants[number] for number in sorted(graph.constants)}
    versions = (__version__, torch.__version__, platform.machine(), str(torch.get_num_threads()))
    return digest(
        graph.fingerprint, repr(ops), constants, dict(sorted(state.items())), inputs, versions, *asked
    )


def digest(*values: Any) -> str:
    """A hash of nested values: tensors and arrays by what they hold, everything else by how it prints."""
    found = hashlib.blake2b(digest_size=12)
    _feed(found, values)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        found.update(f"{value.dtype}{list(value.shape)}".encode())
        if value.numel() and not value.is_meta:
            found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{list(value.shape)}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _feed(found, (name, item))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        found.update(f"[{len(value)}".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(f"{value!r};".encode())
