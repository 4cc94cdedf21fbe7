"""Keras models of many kinds, small, with weights that are not zero anywhere; each with inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

Made = tuple[Any, Any]
BUILDERS: dict[str, Callable[[], Made]] = {}


def case(builder: Callable[[], Made]) -> Callable[[], Made]:
    BUILDERS[builder.__name__] = builder
    return builder


def made(name: str) -> Made:
    """The model and its inputs, the same every time."""
    keras.utils.set_random_seed(0)
    model, inputs = BUILDERS[name]()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        value = rng.uniform(0.2, 1.0, tuple(variable.shape)) * rng.choice([-1.0, 1.0], tuple(variable.shape))
        scale = max(1, np.prod(variable.shape[:-1]) ** 0.5) if len(variable.shape) > 1 else 1
        positive = "variance" in variable.name or "gamma" in variable.name
        if "int" not in variable.dtype:
            variable.assign((np.abs(value) if positive else value) / scale)
    return model, inputs


def images(size: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, size, size, channels)).astype("float32")


def sequence(length: int = 5, width: int = 6) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, length, width)).astype("float32")


def tokens(length: int = 7, count: int = 11) -> np.ndarray:
    return np.random.default_rng(1).integers(0, count, (2, length)).astype("int32")


@case
def sequential_cnn() -> Made:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 2),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(6, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="gelu"),
            layers.Dropout(0.2),
            layers.Dense(4, activation="softmax"),
        ]
    )
    return model, images()


@case
def residual() -> Made:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(x)
    for _ in range(2):
        y = layers.Conv2D(12, 3, padding="same", activation="relu")(x)
        y = layers.Conv2D(8, 3, padding="same")(y)
        x = layers.Add()([x, layers.BatchNormalization()(y)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4)(x)), images()


@case
def separable_and_depthwise() -> Made:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=1)(x)
    x = layers.Conv2DTranspose(6, 3, strides=2)(x)
    x = layers.Conv2D(8, 3, groups=2, activation="relu")(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))), images()


@case
def squeeze_excite() -> Made:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu")(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(4, 1, activation="relu")(s)
    x = x * layers.Conv2D(8, 1, activation="sigmoid")(s)
    x = layers.Concatenate()([x, layers.Conv2D(4, 1)(x)])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), images()


@case
def conv_1d() -> Made:
    x = inputs = keras.Input((12, 4))
    x = layers.Conv1D(8, 3, padding="causal", activation="relu")(x)
    x = layers.SeparableConv1D(6, 3)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), sequence(12, 4)


@case
def conv_3d() -> Made:
    x = inputs = keras.Input((5, 5, 5, 2))
    x = layers.Conv3D(6, 2, activation="relu")(x)
    x = layers.Conv3D(4, 2)(layers.BatchNormalization()(x))
    given = np.random.default_rng(1).standard_normal((2, 5, 5, 5, 2)).astype("float32")
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), given


@case
def norms() -> Made:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.GroupNormalization(groups=4)(layers.Conv2D(8, 3)(x))
    x = layers.LayerNormalization()(layers.Conv2D(6, 3, activation="relu")(x))
    x = layers.RMSNormalization()(layers.Dense(8)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))), images()


@case
def transformer() -> Made:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(11, 12)(inputs)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 6)(y, y)
        y = layers.Dense(20, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(12)(y)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), tokens()


@case
def attention_kinds() -> Made:
    x = inputs = keras.Input((5, 6))
    x = layers.Dense(8)(x)
    x = layers.MultiHeadAttention(2, 4, value_dim=6, output_shape=10, dropout=0.1)(x, x, use_causal_mask=True)
    x = layers.GroupQueryAttention(4, 6, 2)(x, x)
    x = layers.Attention()([x, layers.Dense(10)(x)])
    return keras.Model(inputs, layers.Dense(3)(x)), sequence()


@case
def lstm() -> Made:
    x = inputs = keras.Input((5, 6))
    x = layers.LSTM(8, return_sequences=True)(x)
    x = layers.GRU(6)(x)
    return keras.Model(inputs, layers.Dense(3)(x)), sequence()


@case
def bidirectional() -> Made:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(11, 6)(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.Bidirectional(layers.GRU(6), merge_mode="sum")(x)
    return keras.Model(inputs, layers.Dense(3)(x)), tokens()


@case
def recurrent_by_steps() -> Made:
    """Cells that Keras itself calls step by step, where it has no fused op for them."""
    x = inputs = keras.Input((5, 6))
    x = layers.SimpleRNN(8, return_sequences=True)(x)
    x = layers.GRU(6, reset_after=False, return_sequences=True)(x)
    x = layers.LSTM(6, dropout=0.2, recurrent_dropout=0.1, return_sequences=True)(x)
    x = layers.RNN([layers.LSTMCell(8), layers.GRUCell(6)])(x)
    return keras.Model(inputs, layers.Dense(3)(x)), sequence()


@case
def masked() -> Made:
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(11, 6, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    x = layers.LSTM(6)(x)
    given = tokens()
    given[0, 4:], given[1, 6:] = 0, 0
    return keras.Model(inputs, layers.Dense(3)(x)), given


@case
def masked_sequence() -> Made:
    model = keras.Sequential([keras.Input((5, 6)), layers.Masking(), layers.LSTM(8), layers.Dense(3)])
    given = sequence()
    given[:, 3:] = 0
    return model, given


@case
def convolutional_recurrent() -> Made:
    x = inputs = keras.Input((3, 6, 6, 2))
    x = layers.ConvLSTM2D(4, 3)(x)
    given = np.random.default_rng(1).standard_normal((2, 3, 6, 6, 2)).astype("float32")
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), given


@case
def reshaped() -> Made:
    x = inputs = keras.Input((6,))
    x = layers.Dense(4 * 4 * 6, activation="relu")(x)
    x = layers.Reshape((4, 4, 6))(x)
    x = layers.Conv2DTranspose(8, 3, activation="relu")(x)
    x = layers.Permute((3, 1, 2))(x)
    x = layers.TimeDistributed(layers.Flatten())(x)
    x = layers.Dense(5)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), sequence(1, 6)[:, 0]


@case
def heads_by_ops() -> Made:
    inputs = keras.Input((5, 6))
    x = layers.Dense(24, name="qkv")(inputs)
    q, k, v = ops.split(ops.reshape(x, (-1, 5, 4, 6)), 3, axis=-1)
    scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k))
    x = ops.reshape(ops.einsum("bhqk,bkhd->bqhd", scores, v), (-1, 5, 8))
    return keras.Model(inputs, layers.Dense(3)(x)), sequence()


@case
def nested() -> Made:
    a = keras.Input((8, 8, 4), name="patch")
    inner = keras.Model(
        a, layers.Conv2D(6, 3, name="conv")(layers.Conv2D(10, 1, name="wide")(a)), name="inner"
    )
    tower = keras.Sequential([layers.LayerNormalization(), layers.Conv2D(8, 2)], name="tower")
    inputs = keras.Input((8, 8, 3))
    x = inner(layers.Conv2D(4, 1, name="wide")(inputs))
    x = tower(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), images()


@case
def shared() -> Made:
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    tower = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(5)])
    x = layers.Subtract()([tower(a), tower(b)])
    model = keras.Model({"a": a, "b": b}, {"score": layers.Dense(1)(x), "raw": layers.Dense(2)(x)})
    return model, {"a": sequence(1, 6)[:, 0], "b": sequence(1, 6)[:, 0] * 0.5}


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A transformer block whose sizes are arguments."""

    def __init__(self, width: int, heads: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.heads, self.hidden = width, heads, hidden
        self.norm = layers.LayerNormalization()
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.up = layers.Dense(hidden, activation="relu")
        self.down = layers.Dense(width)

    def build(self, shape: Any) -> None:
        self.norm.build(shape)
        self.attention.build(shape, shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.hidden))

    def call(self, x: Any) -> Any:
        y = self.norm(x)
        x = x + self.attention(y, y)
        return x + self.down(self.up(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "heads": self.heads, "hidden": self.hidden}


@case
def custom_layer() -> Made:
    inputs = keras.Input((5, 6))
    x = layers.Dense(8)(inputs)
    x = Block(8, 2, 12)(Block(8, 2, 20)(x))
    return keras.Model(inputs, layers.Dense(3)(x)), sequence()


@keras.saving.register_keras_serializable("tests")
class Positions(layers.Layer):
    """Tokens and where they stand, counted up to sizes of inputs and of its own that no dtype is given for."""

    def __init__(self, length: int, count: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.count, self.width = length, count, width
        self.tokens = layers.Embedding(count, width)
        self.places = layers.Embedding(length, width)
        self.ends = layers.Embedding(length, width)

    def call(self, x: Any) -> Any:
        places = ops.arange(start=0, stop=ops.shape(x)[-1], step=1)
        ends = ops.minimum(self.length - 1, ops.arange(self.length))
        return self.tokens(x) + self.places(places) + self.ends(ends)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "length": self.length, "count": self.count, "width": self.width}


@case
def positions() -> Made:
    x = inputs = keras.Input((7,), dtype="int32")
    x = Positions(7, 11, 8)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(10, activation="relu")(x))), tokens()


@keras.saving.register_keras_serializable("tests")
class Finite(layers.Layer):
    """A branch that values decide on."""

    def call(self, x: Any) -> Any:
        return ops.cond(ops.all(ops.isfinite(x)), lambda: x, lambda: ops.zeros_like(x))

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@case
def steered() -> Made:
    inputs = keras.Input((6,))
    x = Finite()(layers.Dense(10, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(3)(x)), sequence(1, 6)[:, 0]


@keras.saving.register_keras_serializable("tests")
class Classifier(keras.Model):
    """A subclassed model whose sizes are arguments."""

    def __init__(self, width: int = 8, hidden: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.hidden = width, hidden
        self.stem = layers.Conv2D(width, 3, activation="relu")
        self.body = layers.Conv2D(hidden, 3, activation="relu")
        self.head = layers.Dense(4)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.body(self.stem(x))
        return self.head(ops.mean(x, axis=(1, 2)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "hidden": self.hidden}


@case
def subclassed() -> Made:
    model = Classifier()
    model(images())
    return model, images()


@keras.saving.register_keras_serializable("tests")
class Multiples(keras.Model):
    """Residual blocks whose layers are twice as wide as one number says, and attention whose heads share it out."""

    def __init__(self, width: int = 8, heads: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.stem = layers.Dense(width)
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.blocks = [
            keras.Sequential([layers.Dense(2 * width, activation="relu"), layers.Dense(width)])
            for _ in range(2)
        ]
        self.head = layers.Dense(4)

    def call(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + self.attention(x, x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(ops.relu(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width, "heads": self.heads}


@case
def multiples() -> Made:
    model = Multiples()
    model(sequence())
    return model, sequence()
