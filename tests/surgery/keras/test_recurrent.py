"""Recurrent layers at once answer as Keras does step by step, over masks of every kind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import torch
from keras import layers

import sned
from sned.surgery.keras.arrays import to_tensor
from sned.surgery.keras.recurrent import at_once
from sned.surgery.keras.road import recorded_network

STEPS = 7


def words() -> np.ndarray:
    """Masked in front, behind and in between, everywhere, and nowhere."""
    given = np.random.default_rng(1).integers(1, 11, (4, STEPS)).astype("int32")
    given[0, :3], given[1, 4:], given[1, 1], given[2] = 0, 0, 0, 0
    return given


def model_of(*recurrent: Any, masked: bool = True) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(11, 6, mask_zero=masked, embeddings_initializer="normal")(inputs)
    for layer in recurrent:
        x = layer(x)
    model = keras.Model(inputs, x)
    for variable in model.weights:  # biases too
        if "seed" not in variable.name:
            variable.assign(keras.random.normal(variable.shape, stddev=0.5))
    return model


def both(model: Any, inputs: np.ndarray) -> tuple[int, list[torch.Tensor], list[torch.Tensor]]:
    """How many layers run at once, what comes of it, and what the model itself answers."""
    network = recorded_network(model, inputs)
    with torch.no_grad():
        got = network(torch.as_tensor(inputs))
    assert network.graph is not None
    runs = sum(one.__name__ == "run" for one in at_once(network.graph, model).values())
    expected = [
        to_tensor(value).detach().cpu() for value in keras.tree.flatten(model(inputs, training=False))
    ]
    return runs, [*got] if isinstance(got, tuple) else [got], expected


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_all_steps_at_once_answer_as_one_by_one(kind: Any, masked: bool) -> None:
    model = model_of(
        layers.Bidirectional(kind(4, return_sequences=True)),  # zero where masked
        kind(5, return_sequences=True, go_backwards=True, use_bias=False),  # held where masked
        kind(4, recurrent_dropout=0.2),
        masked=masked,
    )
    runs, got, expected = both(model, words())
    assert runs == 4
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("layer", "masked", "runs"),
    [
        (layers.LSTM(4, return_state=True), False, 1),
        (layers.LSTM(4, return_state=True), True, 0),  # PyTorch tells the memory after the last step alone
        (layers.GRU(4, return_state=True, return_sequences=True), True, 1),
        (layers.LSTM(4, activation="relu"), True, 0),
        (layers.GRU(4, reset_after=False), True, 0),
        (layers.SimpleRNN(4), True, 0),
    ],
)
def test_states_and_other_arithmetic(layer: Any, masked: bool, runs: int) -> None:
    given = both(model_of(layer.from_config(layer.get_config()), masked=masked), words())
    assert given[0] == runs
    torch.testing.assert_close(given[1], given[2])


def test_a_state_can_be_handed_on() -> None:
    inputs = keras.Input((STEPS, 3))
    _, *states = layers.LSTM(4, return_state=True)(inputs)
    model = keras.Model(inputs, layers.LSTM(4, return_sequences=True)(inputs, initial_state=states))
    given = np.random.default_rng(0).standard_normal((2, STEPS, 3)).astype("float32")
    runs, got, expected = both(model, given)
    assert runs == 2
    torch.testing.assert_close(got, expected)


def test_a_file_has_one_node_for_all_steps(tmp_path: Path) -> None:
    model = model_of(
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.GRU(5), layers.Dense(2)
    )
    sned.export(model, words(), out=tmp_path / "model.onnx")
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert (nodes.count("LSTM"), nodes.count("GRU"), nodes.count("Tanh")) == (2, 1, 0)


@pytest.mark.parametrize("kind", [layers.SimpleRNN, layers.LSTM])
def test_very_many_steps_are_told_of_where_each_is_ops_of_its_own(kind: Any) -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, kind(4)(layers.Masking()(inputs)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sned.trace(model, np.ones((2, 150, 3), "float32"))
    said = [str(one.message) for one in told if "step by step" in str(one.message)]
    assert bool(said) == (kind is layers.SimpleRNN)
    assert all("'simple_rnn'" in text and "example of fewer steps" in text for text in said)
