from pathlib import Path

import pytest
import torch

from sned.calibration.store import RowStore
from sned.errors import WriteError


@pytest.mark.parametrize("limit", [0, 150, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16, torch.bool])
def test_rows_come_back_as_they_went_in(tmp_path: Path, limit: int, dtype: torch.dtype) -> None:
    rows = (torch.randn(20, 3, 2) * 5).to(dtype)
    store = RowStore(tmp_path, limit)
    for first, last in ((0, 1), (1, 9), (9, 20)):
        store.append(rows[first:last])
    assert len(store) == 20
    assert torch.equal(store.read(0, 20), rows)
    assert torch.equal(store.read(7, 12), rows[7:12])


def test_a_slice_does_not_keep_what_it_was_cut_from() -> None:
    store = RowStore()
    store.append(torch.zeros(1000, 10)[:1])
    store.append(torch.ones(1, 10))
    assert store.read(0, 2).sum() == 10


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = RowStore(tmp_path, 0)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(WriteError, match=r"No space left on device.*workdir"):
        store.append(torch.zeros(2, 2))
