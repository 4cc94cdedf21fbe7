"""The store of op times: whole or empty, never half-read."""

import json
from pathlib import Path

import pytest

from sned.devices.store import FORMAT, Environment, Store, cache_folder

HERE = Environment("onnxruntime 1.2.3", "A processor", 1)


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    store = Store.open(HERE, tmp_path)
    assert store.yardsticks == {}
    store.yardsticks["op"] = 1.5
    store.save()
    assert Store.open(HERE, tmp_path).yardsticks == {"op": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == [store.path.name]


@pytest.mark.parametrize(
    "other",
    [
        Environment("onnxruntime 1.2.4", "A processor", 1),
        Environment("onnxruntime 1.2.3", "Another", 1),
        Environment("onnxruntime 1.2.3", "A processor", 2),
    ],
)
def test_times_of_another_environment_are_not(tmp_path: Path, other: Environment) -> None:
    store = Store.open(HERE, tmp_path)
    store.yardsticks["op"] = 1.5
    store.save()
    assert Store.open(other, tmp_path).yardsticks == {}
    # Not even under the same name, as after a clash of hashes.
    Store.open(other, tmp_path).path.write_bytes(store.path.read_bytes())
    assert Store.open(other, tmp_path).yardsticks == {}


def valid(**changes: object) -> str:
    held = {"format": FORMAT, **vars(HERE), "yardsticks": {"op": 1.5}}
    return json.dumps({**held, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        valid()[:-9],
        valid(format=0),
        valid(yardsticks=[1]),
        valid(threads="1"),
        "\x00\xff",
    ],
)
def test_damaged_files_count_as_empty_and_are_written_over(tmp_path: Path, text: str) -> None:
    path = Store.open(HERE, tmp_path).path
    path.write_text(text, encoding="latin-1")
    store = Store.open(HERE, tmp_path)
    assert store.yardsticks == {}
    store.yardsticks["op"] = 2.0
    store.save()
    assert Store.open(HERE, tmp_path).yardsticks == {"op": 2.0}


def test_times_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    path = Store.open(HERE, tmp_path).path
    path.write_text(valid(yardsticks={"a": 1.0, "b": -1.0, "c": "x", "d": float("inf")}), encoding="utf-8")
    assert Store.open(HERE, tmp_path).yardsticks == {"a": 1.0}


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    store = Store.open(HERE, blocked / "cache")
    store.yardsticks["op"] = 1.0
    store.save()
    assert blocked.read_text(encoding="utf-8") == "in the way"


def test_the_folder_follows_the_platform() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c"}, "linux") == Path("/c/sned")
    assert cache_folder({"LOCALAPPDATA": "/l"}, "win32") == Path("/l/sned/Cache")
    assert cache_folder({}, "darwin").parts[-3:] == ("Library", "Caches", "sned")
    assert cache_folder({}, "linux").parts[-2:] == (".cache", "sned")
