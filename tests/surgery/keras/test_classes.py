"""Functional models of classes that make their layers from arguments of their own, as libraries of models write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import sned
from tests.surgery.keras.models import sequence
from tests.surgery.keras.test_apply import answers, close, zeroed


@keras.saving.register_keras_serializable("tests")
class After(layers.Layer):
    """A layer that tells its own name in those of its inner ones, and makes it anew each time."""

    def __init__(self, hidden: int, width: int, name: str = "block", **kwargs: Any) -> None:
        super().__init__(name=f"{name}_0", **kwargs)
        self.hidden, self.width = hidden, width
        self.up = layers.Dense(hidden, activation="relu", name=f"{self.name}_up")
        self.down = layers.Dense(width, name=f"{self.name}_down")

    def build(self, shape: Any) -> None:
        self.up.build(shape)
        self.down.build((*shape[:-1], self.hidden))

    def call(self, x: Any) -> Any:
        return x + self.down(self.up(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden, "width": self.width}


@keras.saving.register_keras_serializable("tests")
class Blocks(keras.Model):
    """Blocks that are all made from the same two numbers."""

    def __init__(self, hidden: int = 10, width: int = 8, name: str | None = None, **kwargs: Any) -> None:
        inputs = keras.Input((5, 6), name="features")
        x = layers.Dense(width, name=f"{name}_stem" if name else "stem")(inputs)
        for i in range(2):
            x = After(hidden, width, name=f"block_{i}")(x)
        super().__init__(inputs=inputs, outputs=x, name=name, **kwargs)
        self.hidden, self.width = hidden, width

    def get_config(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "width": self.width, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


@keras.saving.register_keras_serializable("tests")
class Headed(keras.Model):
    """A head on a backbone, which compiles itself."""

    def __init__(self, backbone: Any, classes: int = 3, **kwargs: Any) -> None:
        inputs = backbone.input
        pooled = layers.GlobalAveragePooling1D()(backbone(inputs))
        super().__init__(inputs=inputs, outputs=layers.Dense(classes, name="head")(pooled), **kwargs)
        self.backbone, self.classes = backbone, classes
        self.compile()

    def compile(self, optimizer: Any = "auto", **kwargs: Any) -> None:
        chosen = keras.optimizers.Adam(1e-4) if optimizer == "auto" else optimizer
        super().compile(optimizer=chosen, **{"loss": "mse", **kwargs})

    def get_config(self) -> dict[str, Any]:
        held = keras.saving.serialize_keras_object(self.backbone)
        return {"backbone": held, "classes": self.classes, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})


def test_inner_layers_may_be_called_after_what_is_around_them(tmp_path: Path) -> None:
    model, x = Blocks(), sequence()
    graph = sned.trace(model, x)
    (group,) = graph.groups
    assert group.name == "block_0_0.block_0_0_up"
    plan = sned.plan(graph, sparsity=0.5)
    small = sned.apply(model, plan)
    assert (type(small), small.hidden, small.width) == (Blocks, 5, 8)
    few = answers(small, x)
    small.save(tmp_path / "small.keras")
    close(answers(keras.saving.load_model(tmp_path / "small.keras"), x), few)
    close(few, answers(zeroed(model, graph, plan), x))


def test_a_model_may_compile_itself_when_it_is_made() -> None:
    model, x = Headed(Blocks()), sequence()
    graph = sned.trace(model, x)
    plan = sned.plan(graph, sparsity=0.5)
    small = sned.apply(model, plan)
    assert (type(small), small.backbone.hidden, small.backbone.width) == (Headed, 5, 4)
    assert float(small.optimizer.learning_rate) == np.float32(1e-4)
    model.compile(keras.optimizers.SGD(0.125))
    small = sned.apply(model, plan)
    assert isinstance(small.optimizer, keras.optimizers.SGD)
    assert float(small.optimizer.learning_rate) == 0.125
    small.fit(x, np.zeros((2, 3)), verbose=0)
    close(answers(sned.apply(model, plan), x), answers(zeroed(model, graph, plan), x))


@keras.saving.register_keras_serializable("tests")
class Decoder(layers.Layer):
    """Attention whose heads are worked out from what it is built for, where attention drops something."""

    def __init__(self, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, sequence_shape: Any, memory_shape: Any) -> None:
        width = memory_shape[-1]
        self.attention = layers.MultiHeadAttention(self.heads, int(width // self.heads), dropout=0.5)
        self.attention.build(sequence_shape, memory_shape)
        self.out = layers.Dense(width)
        self.out.build(sequence_shape)

    def call(self, sequence: Any, memory: Any) -> Any:
        return sequence + self.out(self.attention(sequence, memory))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads}


@keras.saving.register_keras_serializable("tests")
class Widths(keras.Model):
    """Widths of attention that follow from one number, and of convolutions from lists in lists, rounded or not."""

    def __init__(
        self, width: int = 24, sizes: Any = ((8, 16), (16,)), rounded: bool = False, **kwargs: Any
    ) -> None:
        inputs = keras.Input((5, 6), name="features")
        x = layers.Dense(width)(inputs)
        x = Decoder(2)(sequence=x, memory=x)
        for size in [size for stage in sizes for size in stage]:
            x = layers.Conv1D(int(size / 8) * 8 if rounded else 2 * size, 3, padding="same")(x)
        super().__init__(inputs=inputs, outputs=layers.Dense(3, name="head")(x), **kwargs)
        self.width, self.sizes, self.rounded = width, sizes, rounded

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "sizes": self.sizes, "rounded": self.rounded, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


def test_widths_may_be_worked_out_and_stand_in_lists_of_lists() -> None:
    model, x = Widths(), sequence()
    graph = sned.trace(model, x)
    plan = sned.plan(graph, sparsity=0.5)
    small = sned.apply(model, plan)
    assert (small.width, [list(stage) for stage in small.sizes]) == (12, [[4, 8], [8]])
    assert small.layers[2].attention.key_dim == 6
    exact = graph.plan({name: plan.removed[name] for name in plan.removed if graph.group(name).exact})
    close(answers(sned.apply(model, exact), x), answers(zeroed(model, graph, exact), x))


def test_widths_that_the_code_rounds_stay() -> None:
    model, x = Widths(rounded=True), sequence()
    graph = sned.trace(model, x)
    small = sned.apply(model, sned.plan(graph, sparsity=0.5))
    assert (small.width, small.sizes) == (12, model.sizes)
    reasons = {frozen.reason for frozen in graph.frozen if "conv" in frozen.name}
    assert reasons == {"the code rounds this size"}
