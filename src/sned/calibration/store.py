"""Rows kept for later: in memory while they are few, in a file when they are many."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sned.errors import WriteError
from sned.memory import BUDGET

IN_MEMORY = BUDGET
"""Bytes of one store above which it moves to a file."""


class RowStore:
    """Tensors that grow along their first axis and are read back in slices.

    Args:
        folder: where the file goes when there are more than `limit` bytes; a temporary folder when None. The
            file is removed with the store.
        limit: bytes kept in memory; `IN_MEMORY` when None.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = IN_MEMORY if limit is None else limit
        self._parts: list[Tensor] = []
        self._bytes = 0
        self._file: Path | None = None
        self._row: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def spooled(self) -> bool:
        """Whether the rows are in a file, because they are many."""
        return self._file is not None

    def append(self, rows: Tensor) -> None:
        """Add rows of one shape and dtype."""
        rows = rows.detach().cpu().contiguous()
        self._row, self._dtype = tuple(rows.shape[1:]), rows.dtype
        self._count += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        self._parts.append(
            rows if self._file or rows.untyped_storage().nbytes() == rows.nbytes else rows.clone()
        )
        if self._file or self._bytes > self._limit:
            self._flush()

    def read(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, a copy."""
        if self._file is None:
            return self._all()[start:stop].clone()
        width = int(np.prod(self._row, dtype=np.int64)) * self._dtype.itemsize
        data = np.fromfile(self._file, np.uint8, (stop - start) * width, offset=start * width)
        return torch.from_numpy(data).view(self._dtype).reshape(-1, *self._row)

    def _all(self) -> Tensor:
        if len(self._parts) != 1:
            self._parts = [torch.cat(self._parts)] if self._parts else [torch.zeros(0)]
        return self._parts[0]

    def _flush(self) -> None:
        if self._file is None:
            place = tempfile.TemporaryDirectory(prefix="sned-", dir=self._folder, ignore_cleanup_errors=True)
            weakref.finalize(self, place.cleanup)
            self._file = Path(place.name) / "rows"
        try:
            with self._file.open("ab") as file:
                for part in self._parts:
                    file.write(part.reshape(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise WriteError(
                f"Calibration keeps its inputs in '{self._file}', but writing there failed: "
                f"{error.strerror}. "
                "Free some space, name a folder on a larger disk with `workdir`, or lower `limit`."
            ) from error
        self._parts = []
