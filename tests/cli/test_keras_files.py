"""Keras models named by their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sned
from sned.cli.inputs import load_example
from sned.cli.keras_files import keras_model
from sned.errors import ExampleError, ModelError

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


def _saved(path: Path, loss: Any) -> Any:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.125), loss, metrics=[keras.metrics.MeanAbsoluteError(name="mae")])
    model.save(path)
    return model


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_compile_settings_are_read(name: str, tmp_path: Path) -> None:
    _saved(tmp_path / name, keras.losses.MeanSquaredError())
    model = keras_model(tmp_path / name)
    x = np.ones((2, 6), "float32")
    small = sned.apply(model, sned.plan(sned.trace(model, x), sparsity=0.5))
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert float(again.optimizer.learning_rate) == 0.125
    assert {"loss", "mae"} == set(again.evaluate(x, np.zeros((2, 3)), verbose=0, return_dict=True))


def test_compile_settings_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    def of_ones_own(wanted: Any, got: Any) -> Any:
        return keras.ops.mean(wanted - got)

    model = _saved(tmp_path / "model.keras", of_ones_own)
    with pytest.warns(
        UserWarning, match=r"compile settings in '.*model.keras' could not be read.*of_ones_own"
    ):
        read = keras_model(tmp_path / "model.keras")
    assert not read.compiled
    for mine, theirs in zip(read.weights, model.weights, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (mine.value, theirs.value)))


def test_a_file_knows_what_it_is_called_with() -> None:
    known = keras.Sequential([keras.Input((6, 4)), keras.layers.Dense(3)])
    assert load_example(None, known).shape == (2, 6, 4)
    ids, size = keras.Input((7,), dtype="int32", name="ids"), keras.Input((3,), batch_size=5, name="size")
    several = keras.Model({"ids": ids, "size": size}, [ids, size])
    given = load_example(None, several)
    assert {name: (array.shape, array.dtype.name) for name, array in given.items()} == {
        "ids": ((2, 7), "int32"),
        "size": ((5, 3), "float32"),
    }


def test_of_an_open_size_it_is_told_what_to_say() -> None:
    words = keras.Input((None,), dtype="int32", name="words")
    model = keras.Model(words, keras.layers.Embedding(9, 4)(words))
    with pytest.raises(ExampleError, match=r"'words' of several sizes, \[any, any\].*`--example`.*'2,100'"):
        load_example(None, model)
    given = load_example("3,20", model)
    assert (given.shape, given.dtype.name) == ((3, 20), "int32")


@pytest.mark.parametrize("model", [torch.nn.Linear(3, 2), keras.Sequential([keras.layers.Dense(3)])])
def test_without_an_example_a_model_must_know_its_inputs(model: Any) -> None:
    with pytest.raises(
        ExampleError, match=r"what the model is called with.*`--example` a shape with its batch"
    ):
        load_example(None, model)
