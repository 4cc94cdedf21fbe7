"""The live cuts of many batches: in memory while they fit, else in files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from sned.calibration.walk import Live
from sned.errors import WriteError

IN_MEMORY = 2**30
"""Bytes of live cuts above which they are spooled to files."""


class Cuts:
    """One value a batch, each a pair of live cuts (dense, pruned); a context that removes its files on
    leaving.

    Args:
        folder: where files go when the cuts take more than `limit` bytes; a temporary folder when None.
        limit: bytes kept in memory; `IN_MEMORY` when None.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="sned-", dir=folder, ignore_cleanup_errors=True)
        self._limit = IN_MEMORY if limit is None else limit
        self._held: dict[int, tuple[Live, Live]] = {}
        self._bytes: dict[int, int] = {}

    def __enter__(self) -> Cuts:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        self._place.cleanup()

    def put(self, batch: int, dense: Live, pruned: Live) -> None:
        """Keep the cuts of a batch."""
        self._bytes[batch] = sum(
            t.untyped_storage().nbytes() for cut in (dense, pruned) for t in cut.values()
        )
        if sum(self._bytes[b] for b in self._held) + self._bytes[batch] <= self._limit:
            self._held[batch] = (dense, pruned)
            return
        try:
            # `torch.save` keeps which tensors are views of which, so ops that write in place stay right.
            torch.save((dense, pruned), self._file(batch))
        except (OSError, RuntimeError) as error:
            raise WriteError(
                f"Repair spools activations to '{self._place.name}', but writing there failed: {error}. "
                "Free some space, name a folder on a larger disk with `workdir`, or use fewer calibration "
                "inputs."
            ) from error

    def take(self, batch: int) -> tuple[Live, Live]:
        """Hand out the cuts of a batch; they are not kept any longer."""
        if batch in self._held:
            return self._held.pop(batch)
        return self.look(batch)

    def look(self, batch: int) -> tuple[Live, Live]:
        """The cuts of a batch, which stay kept; not to be changed."""
        if batch in self._held:
            return self._held[batch]
        dense, pruned = torch.load(self._file(batch), weights_only=True)
        return dense, pruned

    def _file(self, batch: int) -> Path:
        return Path(self._place.name) / f"{batch}.pt"
