import gc
import sys
import warnings
from pathlib import Path

import pytest
import torch

from sned.calibration.spool import Spool, bytes_of
from sned.errors import WriteError


def test_values_come_back_from_memory_and_from_files(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    first, second = {"a": whole, "row": whole[1], "none": None}, (torch.ones(5), 7)
    assert bytes_of(first) == whole.nbytes, "what shares memory counts once"
    with Spool(tmp_path, limit=whole.nbytes) as spool:
        spool.put(0, first)
        spool.put(1, second)
        files = list(tmp_path.rglob("*.pt"))
        assert [file.stem for file in files] == ["1"]
        assert spool.look(0) is first
        spool.put(0, second)
        assert spool.look(0) is second, "the last one put there"
        spool.put(2, second)
        spool.put(0, first)  # which no longer fits
        assert len(spool) == 3
        found = spool.take(0)
        assert torch.equal(found["a"], whole)
        found["row"].fill_(-1)
        assert bool((found["a"][1] == -1).all()), "views of a tensor stay views of it"
        ones, number = spool.look(1)
        assert torch.equal(ones, torch.ones(5))
        assert number == 7
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [True, False])
def test_how_others_save_stays_as_it_was(before: bool, tmp_path: Path) -> None:
    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(before)
    try:
        with Spool(tmp_path, limit=0) as spool:
            spool.put(0, torch.ones(3))
            assert torch.serialization.get_crc32_options() is before
            next(tmp_path.iterdir()).rename(tmp_path / "gone")
            with pytest.raises(WriteError, match="workdir"):
                spool.put(1, torch.ones(3))
            assert torch.serialization.get_crc32_options() is before
    finally:
        torch.serialization.set_crc32_options(usual)


def test_files_go_with_what_nobody_closes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=0)
    spool.put(0, torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.MonkeyPatch.context() as patch:
            unraisable: list[object] = []
            patch.setattr(sys, "unraisablehook", unraisable.append)
            del spool
            gc.collect()
    assert not unraisable, "closed, not left to the collector, which warns of it"
    assert not list(tmp_path.iterdir())
