"""Models that Keras cannot make and run again as they are, and how that is told."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import sned
from sned.errors import ModelError
from sned.surgery.keras.outside import within_keras
from tests.surgery.keras.models import sequence

BACKEND = keras.backend.backend()


class Numpy(layers.Layer):
    """A layer that leaves the framework."""

    def call(self, x: Any) -> Any:
        return (
            x
            if keras.backend.is_keras_tensor(x)
            else keras.ops.convert_to_tensor(np.maximum(np.asarray(x), 0))
        )


class Raw(layers.Layer):
    """A layer that calls TensorFlow itself."""

    def call(this, x: Any) -> Any:  # a user may call it so
        import tensorflow as tf

        return tf.nn.relu(x)


class RawModel(keras.Model):
    """A model that calls TensorFlow itself."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.one, self.two = layers.Dense(8), layers.Dense(3)

    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return self.two(tf.nn.relu(self.one(x)))


@pytest.mark.parametrize("kind", [Numpy, Raw])
def test_calls_past_keras_are_named(kind: Any) -> None:
    if BACKEND not in {Raw: ["tensorflow"], Numpy: ["tensorflow", "torch"]}[kind]:
        pytest.skip("such a model does not run under this backend at all")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), kind(name="past"), layers.Dense(3)])
    text = rf"`{kind.__name__}\.call` \(layer 'past'\).*`tf\.\*` or NumPy.*keras\.ops"
    with pytest.raises(ModelError, match=text):
        sned.trace(model, sequence(1, 6)[:, 0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="such a model runs under TensorFlow alone")
def test_a_model_that_calls_past_keras_is_named() -> None:
    with pytest.raises(ModelError, match=r"`RawModel\.call`.*keras\.ops"):
        sned.trace(RawModel(name="raw"), sequence(1, 6)[:, 0])


def test_arrays_outside_of_layers_are_no_concern() -> None:
    value = keras.ops.ones((3,))
    with within_keras():
        assert float(np.asarray(keras.ops.convert_to_numpy(value)).sum()) == 3.0


@pytest.mark.parametrize("shape", [None, (8,)])
def test_a_lambda_that_lost_its_names_is_told(shape: Any) -> None:
    inputs = keras.Input((6,))
    x = layers.Lambda(lambda t: ops.relu(t), output_shape=shape)(layers.Dense(8)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(
        ModelError, match=r"lambda as bare code: there it does not know 'ops'.*function or a layer"
    ):
        sned.trace(model, sequence(1, 6)[:, 0])


def test_a_lambda_as_an_activation_is_told() -> None:
    hidden = layers.Dense(8, activation=lambda t: t * 2)
    model = keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3)])
    with pytest.raises(ModelError, match=r"in a `Lambda` layer alone, not as an activation\. Replace it"):
        sned.trace(model, sequence(1, 6)[:, 0])
