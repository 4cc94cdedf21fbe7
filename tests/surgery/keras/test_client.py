"""What is heard of a child."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import pytest

from sned.errors import ModelError
from sned.surgery.keras.client import Child, _objects


def test_the_last_words_of_a_child_are_not_those_of_its_libraries() -> None:
    child = Child("torch")
    child._process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True)
    child._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the child)
    child._said.write(
        b"MemoryError: no room\n\n"
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1795978132.9 8007 port.cc:153] oneDNN custom operations are on.\n"
        b"2026-01-01 12:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN\n"
    )
    told = child._last_words()
    assert "ended with code 3. It said last: MemoryError: no room The model" in told


def test_a_python_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(
        ModelError, match=r"PyTorch backend.*`sys\.executable`.*none' could not be run: .*No such"
    ):
        Child("torch").ask(tmp_path)


class Typed(keras.layers.Layer):
    """A layer that was typed in, or stands in a notebook."""

    def call(self, x: Any) -> Any:
        return x


def test_layers_that_stand_in_no_file_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((6,)), Typed(), keras.layers.Dense(3)])
    monkeypatch.setattr(Typed, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(ModelError, match=r"'Typed' must be importable.*\.py file.*KERAS_BACKEND=torch"):
        _objects(model, "torch")
