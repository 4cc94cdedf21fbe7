"""What every test stands on: one thread, real data only where it is, keras on torch."""

import importlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """The folder of real data: `SNED_DATA`, or `../shared/data` from the project's root."""
    return Path(os.environ.get("SNED_DATA", ROOT / "../shared/data")).resolve()


def pytest_configure(config: pytest.Config) -> None:
    """Keep to one thread: workers beside each other would slow each other down, and results would vary."""
    del config
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, and say so, what needs real data that is not here."""
    if data_folder().is_dir():
        return
    reason = f"real data not found in '{data_folder()}': set SNED_DATA to the folder that holds it"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """What is measured by tests is not kept for the user, and once for all workers: it takes ten seconds."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str((base if worker_id == "master" else base.parent) / "cache"))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, for tests marked `data`."""
    return data_folder()


@pytest.fixture
def steps_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching takes a number of steps whatever time it was given: what it makes does not hang on who is busy."""
    module = importlib.import_module("sned.repair.match")
    whole = module.match

    def counted(*args: Any, seconds: float, **options: Any) -> Any:
        del seconds
        return whole(*args, **options)

    monkeypatch.setattr(module, "match", partial(counted, steps=100, rate=2e-3))
