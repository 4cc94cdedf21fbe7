"""Tensors by number: in memory while they fit, else in files."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sned.errors import WriteError
from sned.memory import BUDGET

IN_MEMORY = BUDGET // 4
"""Bytes of one spool above which the rest goes to files."""


class Spool:
    """Tensors, nested in any way, by number; its files go with it, or on leaving where it is used as a context.

    Args:
        folder: where files go when all together take more than `limit` bytes; a temporary folder when None.
        limit: bytes kept in memory; `IN_MEMORY` when None.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="sned-", dir=folder, ignore_cleanup_errors=True)
        weakref.finalize(self, self._place.cleanup)
        self._limit = IN_MEMORY if limit is None else limit
        self._held: dict[int, Any] = {}
        self._bytes: dict[int, int] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._place.cleanup()

    def __len__(self) -> int:
        return len(self._bytes)

    def put(self, number: int, value: Any) -> None:
        """Keep a value, in the place of the one that was there."""
        self._held.pop(number, None)
        self._bytes[number] = bytes_of(value)
        if sum(self._bytes[n] for n in self._held) + self._bytes[number] <= self._limit:
            self._held[number] = value
            return
        try:
            # `torch.save` keeps which tensors are views of which, so ops that write in place stay right. The file
            # that is there may still be read from.
            beside = self._file(number).with_suffix(".new")
            with _without_checksums():
                torch.save(value, beside)
            beside.replace(self._file(number))
        except (OSError, RuntimeError) as error:
            raise WriteError(
                f"What does not fit into memory goes to '{self._place.name}', but writing there failed: {error}. "
                "Free some space, name a folder on a larger disk with `workdir`, or use fewer calibration "
                "inputs."
            ) from error

    def take(self, number: int) -> Any:
        """Hand out a value; it is not kept any longer."""
        return self._held.pop(number) if number in self._held else self.look(number)

    def look(self, number: int) -> Any:
        """A value, which stays kept; not to be changed."""
        if number in self._held:
            return self._held[number]
        return torch.load(self._file(number), weights_only=True, mmap=True)

    def clear(self) -> None:
        """Forget all values."""
        self._held.clear()
        self._bytes.clear()

    def _file(self, number: int) -> Path:
        return Path(self._place.name) / f"{number}.pt"


@contextmanager
def _without_checksums() -> Iterator[None]:
    """They take as long as the writing, and the files live no longer than the process."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def bytes_of(value: Any) -> int:
    """What tensors, nested in any way, take in memory; those that share some count once."""
    storages = (leaf.untyped_storage() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
