from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sned.demo import cache


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache.weights_path()


def network(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def test_what_was_kept_comes_back(path: Path) -> None:
    made = network()
    cache.keep_weights(made)
    found = cache.cached_weights(network(seed=1))
    assert found is not None
    assert found.keys() == made.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in made.state_dict().items())
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_cached_at_first(path: Path) -> None:
    assert not path.exists()
    assert cache.cached_weights(network()) is None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def scribbled_over(path: Path) -> None:
    path.write_bytes(b"not a checkpoint at all")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def not_finite(path: Path) -> None:
    weights = load_file(path)
    weights["0.weight"] = torch.full_like(weights["0.weight"], float("nan"))
    save_file(weights, path)


def of_another_type(path: Path) -> None:
    save_file({name: value.to(torch.float16) for name, value in load_file(path).items()}, path)


def lacking_one(path: Path) -> None:
    save_file({name: value for name, value in load_file(path).items() if name != "0.bias"}, path)


@pytest.mark.parametrize(
    "damage", [cut_short, scribbled_over, emptied, not_finite, of_another_type, lacking_one]
)
def test_damaged_weights_are_not_believed(path: Path, damage: Callable[[Path], None]) -> None:
    cache.keep_weights(network())
    damage(path)
    assert cache.cached_weights(network()) is None


def test_weights_of_another_shape_are_not_believed(path: Path) -> None:
    cache.keep_weights(network(width=5))
    assert path.is_file()
    assert cache.cached_weights(network(width=3)) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.keep_weights(network())
    assert cache.cached_weights(network()) is None


@pytest.mark.parametrize(
    ("environment", "platform", "ending"),
    [
        ({"XDG_CACHE_HOME": "x"}, "linux", "x/sned"),
        ({"XDG_CACHE_HOME": ""}, "linux", ".cache/sned"),
        ({}, "darwin", "Library/Caches/sned"),
        ({"LOCALAPPDATA": "L"}, "win32", "L/sned/Cache"),
        ({}, "win32", "AppData/Local/sned/Cache"),
    ],
)
def test_the_folder_is_where_the_platform_has_it(
    environment: dict[str, str], platform: str, ending: str
) -> None:
    assert cache.cache_folder(environment, platform).as_posix().endswith(ending)
