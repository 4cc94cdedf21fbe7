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
class Block(layers.Layer):
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
class Backbone(keras.Model):
    """Blocks that are all made from the same two numbers."""

    def __init__(self, hidden: int = 10, width: int = 8, name: str | None = None, **kwargs: Any) -> None:
        inputs = keras.Input((5, 6), name="features")
        x = layers.Dense(width, name=f"{name}_stem" if name else "stem")(inputs)
        for i in range(2):
            x = Block(hidden, width, name=f"block_{i}")(x)
        super().__init__(inputs=inputs, outputs=x, name=name, **kwargs)
        self.hidden, self.width = hidden, width

    def get_config(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "width": self.width, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


@keras.saving.register_keras_serializable("tests")
class Classifier(keras.Model):
    """A head on a backbone, which compiles itself."""

    def __init__(self, backbone: Any, classes: int = 3, **kwargs: Any) -> None:
        inputs = backbone.input
        pooled = layers.GlobalAveragePooling1D()(backbone(inputs))
        super().__init__(inputs=inputs, outputs=layers.Dense(classes, name="head")(pooled), **kwargs)
        self.backbone, self.classes = backbone, classes
        self.compile(keras.optimizers.Adam(1e-4), "mse")

    def get_config(self) -> dict[str, Any]:
        held = keras.saving.serialize_keras_object(self.backbone)
        return {"backbone": held, "classes": self.classes, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})


def test_inner_layers_may_be_called_after_what_is_around_them(tmp_path: Path) -> None:
    model, x = Backbone(), sequence()
    graph = sned.trace(model, x)
    (group,) = graph.groups
    assert group.name == "block_0_0.block_0_0_up"
    plan = sned.plan(graph, sparsity=0.5)
    small = sned.apply(model, plan)
    assert (type(small), small.hidden, small.width) == (Backbone, 5, 8)
    few = answers(small, x)
    small.save(tmp_path / "small.keras")
    close(answers(keras.saving.load_model(tmp_path / "small.keras"), x), few)
    close(few, answers(zeroed(model, graph, plan), x))


def test_a_model_may_compile_itself_when_it_is_made() -> None:
    model, x = Classifier(Backbone()), sequence()
    graph = sned.trace(model, x)
    plan = sned.plan(graph, sparsity=0.5)
    small = sned.apply(model, plan)
    assert (type(small), small.backbone.hidden, small.backbone.width) == (Classifier, 5, 4)
    assert float(small.optimizer.learning_rate) == np.float32(1e-4)
    small.fit(x, np.zeros((2, 3)), verbose=0)
    close(answers(sned.apply(model, plan), x), answers(zeroed(model, graph, plan), x))
