"""Keras models named by their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sned.cli.keras_files import keras_model
from sned.errors import ModelError

keras = pytest.importorskip("keras")


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_class_that_is_not_known_is_named(name: str, tmp_path: Path) -> None:
    class Own(keras.layers.Layer):  # type: ignore[name-defined, misc]
        def call(self, x: Any) -> Any:
            return x * 2

    keras.Sequential([keras.Input((6,)), Own(), keras.layers.Dense(3)]).save(tmp_path / name)
    with pytest.raises(
        ModelError, match=rf"could not load .*{name}.*'Own'.*Decorate the class.*model\.py:make"
    ):
        keras_model(tmp_path / name)
