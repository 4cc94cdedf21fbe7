"""What a pruned model keeps beside its weights; and the short road."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import pytest
from keras import layers

import sned
from sned.graph.trace import state_of
from sned.surgery.keras.road import inputs_of
from tests.surgery.keras.models import images, made
from tests.surgery.keras.test_apply import answers, close


def pruned(model: Any, inputs: Any) -> Any:
    return sned.apply(model, sned.plan(sned.trace(model, inputs), sparsity=0.5))


@keras.saving.register_keras_serializable("tests")
class Compiles(keras.Model):
    """A model with a `compile` of its own."""

    def __init__(self, hidden: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = hidden
        self.one, self.two = layers.Dense(hidden), layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))

    def compile(self, alpha: float, **kwargs: Any) -> None:
        super().compile(**kwargs)
        self.alpha = alpha

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden}


def test_where_a_compile_cannot_be_repeated_it_is_told() -> None:
    model, x = Compiles(), np.ones((2, 6), "float32")
    model(x)
    model.compile(alpha=0.5, optimizer="adam", loss="mse")
    with pytest.warns(UserWarning, match=r"Compiles has a `compile` of its own.*Call its `compile`"):
        small = pruned(model, x)
    assert not small.compiled
    assert small.hidden == 4


def test_names_flags_and_compile_settings_are_kept() -> None:
    model, x = made("sequential_cnn")
    model.get_layer("stem").trainable = False
    model.compile(
        keras.optimizers.SGD(0.125, momentum=0.5), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    small = pruned(model, x)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert [layer.trainable for layer in small.layers] == [layer.trainable for layer in model.layers]
    assert small.name == model.name
    assert type(small.optimizer) is type(model.optimizer)
    assert float(small.optimizer.learning_rate) == 0.125
    assert small.loss == "sparse_categorical_crossentropy"
    history = small.fit(x, np.array([0, 1]), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert "accuracy" in small.evaluate(x, np.array([0, 1]), verbose=0, return_dict=True)


def squared(wanted: Any, got: Any) -> Any:
    """A loss that is registered nowhere."""
    return keras.ops.mean(keras.ops.square(wanted - got))


class Count(keras.metrics.MeanSquaredError):
    """A metric that is registered nowhere."""


@pytest.mark.parametrize("loss", [squared, lambda wanted, got: keras.ops.mean(wanted - got), "mse"])
def test_losses_and_metrics_need_not_be_registered(loss: Any) -> None:
    model, x = made("residual")
    model.compile("adam", loss, metrics=[Count(name="count"), "mae"])
    small = pruned(model, x)
    assert small.loss is model.loss
    assert small.optimizer is not model.optimizer
    small.fit(x, np.zeros((2, 4)), verbose=0)
    found = small.evaluate(x, np.zeros((2, 4)), verbose=0, return_dict=True)
    assert {"loss", "mae", "count"} <= set(found)
    assert found["mae"] == pytest.approx(np.abs(answers(small, x)[0]).mean(), rel=1e-3)
    assert not {id(m) for m in small.metrics} & {id(m) for m in model.metrics}
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


def doubled(x: Any) -> Any:
    """An activation that is registered nowhere."""
    return x * keras.ops.sigmoid(2 * x)


@keras.saving.register_keras_serializable("tests")
def tripled(x: Any) -> Any:
    """An activation that is registered."""
    return x * keras.ops.sigmoid(3 * x)


class Unregistered(layers.Layer):
    """A layer that is registered nowhere."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.inner = layers.Dense(units)

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def test_layers_and_activations_need_not_be_registered() -> None:
    model = keras.Sequential(
        [
            keras.Input((6,)),
            Unregistered(8),
            layers.Activation(doubled),
            layers.Dense(10, activation=tripled),
            layers.Dense(3),
        ]
    )
    x = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    small = pruned(model, x)
    assert small.layers[0].units == 4
    assert small.layers[2].activation is tripled
    assert small.layers[2].units == 5


def test_configurations_follow_the_plan() -> None:
    model, x = made("sequential_cnn")
    graph = sned.trace(model, x)
    stem = graph.group("stem")
    small = sned.apply(model, graph.plan({"stem": [0, 3, 5]}))
    assert stem.size == 8
    assert small.get_layer("stem").filters == 5
    kept = [1, 2, 4, 6, 7]
    mine, theirs = (np.array(m.get_layer("stem").get_weights()[0]) for m in (small, model))
    np.testing.assert_array_equal(mine, theirs[..., kept])


def test_groups_are_named_after_what_makes_them() -> None:
    model, x = made("residual")
    graph = sned.trace(model, x)
    assert {group.name for group in graph.groups} == {"conv2d", "conv2d_1", "conv2d_3"}
    assert {frozen.name for frozen in graph.frozen} == {"dense"}
    assert all(tensor.numel() for tensor in state_of(graph.model).values())


def test_adapted_preprocessing_is_kept() -> None:
    normal = layers.Normalization()
    normal.adapt(images() * 3 + 1)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu")(normal(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    graph = sned.trace(model, images())
    full = sned.apply(model, graph.plan({}))
    close(answers(full, images()), answers(model, images()))
    assert pruned(model, images()).count_params() < model.count_params()


def test_weights_are_those_of_now() -> None:
    model, x = made("residual")
    graph = sned.trace(model, x)
    kernel = model.get_layer(model.layers[1].name).kernel
    value = np.array(keras.ops.convert_to_numpy(kernel.value))
    value[..., [1, 2, 6]] = 1e-4
    kernel.assign(value)
    plan = sned.plan(graph, sparsity=0.375)
    first = next(iter(plan.removed))
    small = sned.apply(model, plan)
    theirs = np.array(keras.ops.convert_to_numpy(small.layers[1].kernel.value))
    kept = np.setdiff1d(np.arange(value.shape[-1]), plan.removed[first])
    np.testing.assert_allclose(theirs, value[..., kept])


def test_the_short_road_ends_in_a_plain_keras_model(tmp_path: Path) -> None:
    model, x = made("residual")
    rng = np.random.default_rng(0)
    seen: list[Any] = []

    def evaluate(candidate: Any) -> float:
        seen.append(candidate)
        return float(candidate.count_params() > 0)

    batches = [(rng.standard_normal((16, 8, 8, 3)).astype("float32"), np.zeros(16)) for _ in range(4)]
    result = sned.prune(
        model, x, budget=sned.Budget(macs="60%"), calibration=batches, evaluate=evaluate, out=tmp_path / "out"
    )
    assert all(isinstance(candidate, keras.Model) for candidate in [*seen, result.model])
    assert type(result.model) is type(model)
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert result.report.asked.model == "Functional"
    again = keras.saving.load_model(tmp_path / "out" / "model.keras")
    close(answers(again, x), answers(result.model, x))
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx")
    given = {session.get_inputs()[0].name: x}
    close(session.run(None, given), answers(result.model, x))


def test_zeros_inside_tensors() -> None:
    import sned.keras

    model, x = made("residual")
    sparse = sned.sparsify(model, x, sparsity=0.5, calibration=[images() for _ in range(8)])
    assert isinstance(sparse.model, keras.Model)
    masked = {name for name, zeros in sparse.zeros.items() if zeros > 0}
    assert masked
    assert sned.keras.sparsity_of(sparse.model) > 0.3
    assert sned.keras.sparsity_of(model) == 0


@pytest.mark.parametrize("name", ["residual"])
def test_the_command_line_prunes_files(name: str, tmp_path: Path) -> None:
    from sned.cli.app import main

    model, x = made(name)
    model.save(tmp_path / "model.keras")
    arguments = ["prune", str(tmp_path / "model.keras"), "--sparsity", "0.5"]
    with contextlib.suppress(SystemExit):
        main([*arguments, "--out", str(tmp_path / "out")])
    small = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert small.count_params() < model.count_params()
    assert answers(small, x)[0].shape == answers(model, x)[0].shape


def test_tables_of_inputs_are_in_the_order_of_the_models_inputs() -> None:
    """By name: files call their inputs by these, in this order."""
    user, item = (keras.Input((4,), name=name) for name in ("user", "item"))
    model = keras.Model({"user": user, "item": item}, layers.Dense(3)(user - 2 * item))
    (given,) = inputs_of({"user": np.ones((1, 4)), "item": np.zeros((1, 4))})
    assert list(given) == [tensor.name for tensor in model.inputs]
    assert float(given["user"].sum()) == 4


def test_what_trains_keras_models_is_at_hand() -> None:
    assert sned.keras.Distiller.__name__ == "Distiller"


class Scaled(keras.metrics.MeanSquaredError):
    """A metric that does not tell what it was made with."""

    def __init__(self, scale: float, name: str = "scaled", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.scale = scale


def test_what_cannot_be_compiled_again_is_told() -> None:
    model, x = made("residual")
    model.compile("adam", "mse", metrics=[Scaled(2.0)])
    with pytest.warns(UserWarning, match=r"could not be compiled.*'scale'.*Call its `compile`.*`get_config`"):
        small = pruned(model, x)
    assert not small.compiled
    assert small.count_params() < model.count_params()


def test_a_variable_that_is_not_trained_stays_so() -> None:
    model, x = made("residual")
    model.layers[1].bias.trainable = False
    small = pruned(model, x)
    assert [v.trainable for v in small.layers[1].weights] == [True, False]
    assert len(small.trainable_variables) == len(model.trainable_variables)
