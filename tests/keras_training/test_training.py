"""Distillation and zeros through `fit`."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers

import sned.keras
from sned.errors import ModelError, NotFoundError, UserError
from tests.surgery.keras.test_apply import answers


def network(width: int, *, softmax: bool = True) -> Any:
    keras.utils.set_random_seed(width)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(3, activation="softmax" if softmax else None),
        ]
    )


def inputs(count: int = 128) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 6)).astype("float32")


def divergence(student: Any, teacher: Any, x: np.ndarray) -> float:
    p, q = answers(teacher, x)[0], answers(student, x)[0]
    return float((p * (np.log(p) - np.log(q))).sum(-1).mean())


def test_a_student_comes_to_answer_as_its_teacher() -> None:
    teacher, student = network(16), network(8)
    before = [np.array(w) for w in teacher.get_weights()]
    far = divergence(student, teacher, inputs())
    distiller = sned.keras.Distiller(student, teacher, temperature=2.0, weight=1.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    distiller.fit(inputs(), epochs=20, batch_size=32, verbose=0)
    assert divergence(student, teacher, inputs()) < 0.2 * far
    for mine, theirs in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("softmax", [True, False])
def test_the_loss_is_that_of_the_paper(softmax: bool) -> None:
    teacher, student = network(16, softmax=softmax), network(8, softmax=softmax)
    x, y = inputs(8), np.arange(8) % 3
    distiller = sned.keras.Distiller(student, teacher, temperature=3.0, weight=0.7)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    distiller.compile("sgd", loss=loss)
    got = float(
        distiller.compute_loss(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y), student(x))
    )
    logits = [np.log(a) if softmax else a for a in (answers(teacher, x)[0], answers(student, x)[0])]

    def soft(z: np.ndarray) -> np.ndarray:
        e = np.exp(z / 3.0 - (z / 3.0).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = map(soft, logits)
    hard = -np.log(soft(logits[1] * 3.0))[np.arange(8), y].mean()
    expected = 0.3 * hard + 0.7 * 9 * (p * np.log(p / q)).sum(-1).mean()
    assert got == pytest.approx(expected, rel=1e-4)


def test_regression_is_distilled_by_squares() -> None:
    teacher, student = network(16, softmax=False), network(8, softmax=False)
    distiller = sned.keras.Distiller(student, teacher, temperature=None, weight=1.0)
    distiller.compile("sgd")
    x = inputs(8)
    got = float(distiller.compute_loss(keras.ops.convert_to_tensor(x), None, student(x)))
    expected = np.square(answers(teacher, x)[0] - answers(student, x)[0]).mean()
    assert got == pytest.approx(expected, rel=1e-4)


def test_what_regularizers_ask_for_counts_in_full() -> None:
    student, teacher = network(8), network(16)
    student.layers[0].kernel.regularizer = keras.regularizers.L2(0.1)
    x = inputs(8)
    penalty = 0.1 * np.square(np.array(student.get_weights()[0], "float64")).sum()
    p, q = (answers(model, x)[0].astype("float64") for model in (teacher, student))
    y = np.arange(8) % 3
    hard = -np.log(q[np.arange(8), y]).mean()
    given, labels = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    for weight in (0.6, 1.0):
        distiller = sned.keras.Distiller(student, teacher, temperature=3.0, weight=weight)
        distiller.compile("sgd", "sparse_categorical_crossentropy")
        got = float(distiller.compute_loss(given, labels, student(given)))
        expected = (1 - weight) * hard + weight * divided(p, q, 3.0) + penalty
        assert got == pytest.approx(expected, rel=1e-4)
        assert told(distiller, x) == pytest.approx(weight * divided(p, q, 3.0) + penalty, rel=1e-4)


def test_what_is_saved_in_training_is_the_student(tmp_path: Path) -> None:
    student = network(8)
    distiller = sned.keras.Distiller(student, network(16))
    distiller.compile("adam", "sparse_categorical_crossentropy")
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")
    distiller.fit(inputs(), np.arange(128) % 3, verbose=0, callbacks=[best])
    again = keras.saving.load_model(tmp_path / "best.keras")
    assert type(again) is keras.Sequential
    for mine, theirs in zip(again.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf, sned.keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
def network(width):
    keras.utils.set_random_seed(width)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(width), keras.layers.Dense(3, "softmax")])
def trained(strategy):
    with strategy.scope():
        student = network(8)
        distiller = sned.keras.Distiller(student, network(16), weight=0.7)
        distiller.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).standard_normal((16, 6)).astype("float32")
    distiller.fit(x, np.arange(16) % 3, verbose=0)
    return student.get_weights()
one, two = trained(tf.distribute.get_strategy()), trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
for mine, theirs in zip(one, two):
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow alone sums over replicas")
def test_several_devices_train_as_one_does() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True, env=environ, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def headed(width: int, head: str) -> Any:
    """A classifier that ends in probabilities, in one of the ways that models are written in."""
    keras.utils.set_random_seed(width)
    inputs = keras.Input((6,))
    body = keras.Sequential([layers.Dense(width, activation="relu"), layers.Dense(3, "softmax")])
    if head == "nested":
        return keras.Model(inputs, body(inputs))
    if head == "ops":
        return keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(layers.Dense(width)(inputs))))
    if head == "binary":
        return keras.Model(inputs, layers.Dense(1, "sigmoid")(layers.Dense(width)(inputs)))
    if head == "labels":
        return keras.Model(inputs, layers.Dense(4, "sigmoid")(layers.Dense(width)(inputs)))
    if head == "quantity":
        return keras.Model(inputs, layers.Dense(1)(layers.Dense(width)(inputs)) + 40)
    x = layers.Dense(width)(inputs)
    return keras.Model(inputs, {"kind": layers.Dense(3, "softmax")(x), "size": layers.Dense(1)(x) - 40})


def told(distiller: Any, x: np.ndarray) -> float:
    """The distilling loss of a batch."""
    given = keras.ops.convert_to_tensor(x)
    return float(distiller.compute_loss(given, None, distiller.student(given)))


def divided(p: np.ndarray, q: np.ndarray, temperature: float) -> float:
    """`T² * KL` of the last axis of two tables of probabilities, over a temperature."""
    p, q = ((x ** (1 / temperature)) / (x ** (1 / temperature)).sum(-1, keepdims=True) for x in (p, q))
    return float(temperature**2 * (p * np.log(p / q)).sum(-1).mean())


@pytest.mark.parametrize("head", ["nested", "ops", "binary", "labels", "quantity", "both"])
def test_each_output_is_taken_for_what_its_answers_are(head: str, capfd: pytest.CaptureFixture[str]) -> None:
    teacher, student = headed(16, head), headed(8, head)
    distiller = sned.keras.Distiller(student, teacher, temperature=3.0, weight=1.0)
    x = inputs(16)
    expected = 0.0
    for a, b in zip(answers(teacher, x), answers(student, x), strict=True):
        p, q = a.astype("float64"), b.astype("float64")
        if head in ("binary", "labels"):
            p, q = np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1)
        quantity = p.shape[-1] == 1
        expected += np.square(p - q).mean() if quantity else divided(p, q, 3.0)
    assert told(distiller, x) == pytest.approx(expected, rel=1e-4)
    distiller.compile("adam")
    distiller.fit(x, verbose=0)  # compiled, where the backend compiles
    assert all(np.isfinite(weight).all() for weight in student.get_weights())
    assert (
        "inference failed" not in capfd.readouterr().err
    )  # TensorFlow's word for branches that it cannot type


@pytest.mark.parametrize("from_logits", [True, False])
def test_what_the_user_says_of_an_output_is_believed(from_logits: bool) -> None:
    kind = None if from_logits else "sigmoid"
    teacher, student = (
        keras.Sequential([keras.Input((6,)), layers.Dense(1, kind, kernel_initializer=start)])
        for start in ("ones", "zeros")
    )
    distiller = sned.keras.Distiller(student, teacher, temperature=2.0, weight=1.0, from_logits=from_logits)
    x = inputs(16)
    p, q = (answers(model, x)[0].astype("float64") for model in (teacher, student))
    if from_logits:
        p, q = (1 / (1 + np.exp(-z)) for z in (p, q))
    expected = divided(np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1), 2.0)
    assert told(distiller, x) == pytest.approx(expected, rel=1e-4)


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"outputs of its teacher.*\(4,\) and its own \(3,\)"):
        sned.keras.Distiller(network(4), headed(4, "labels"))
    with pytest.raises(ModelError, match=r"The student must be a Keras model, got NoneType"):
        sned.keras.Distiller(None, None)
    with pytest.raises(ModelError, match=r"The teacher must be a Keras model, got Linear"):
        sned.keras.Distiller(network(4), torch.nn.Linear(6, 3))


def test_zeros_hold_through_fit() -> None:
    model = network(16)
    kernel = model.layers[0].kernel
    mask = np.random.default_rng(0).random((6, 16)) < 0.5
    kernel.assign(np.array(keras.ops.convert_to_numpy(kernel.value)) * mask)
    before = np.array(keras.ops.convert_to_numpy(kernel.value))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(inputs(), np.arange(128) % 3, epochs=2, verbose=0, callbacks=[sned.keras.HoldZeros()])
    after = np.array(keras.ops.convert_to_numpy(kernel.value))
    np.testing.assert_array_equal(after == 0, ~mask)
    assert np.abs(after - before).max() > 1e-4


def test_sparsity_grows_along_the_cubic_schedule() -> None:
    model = network(40)
    callback = sned.keras.GradualSparsity(0.75, begin=2, end=10, every=2)
    seen: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            seen.append(sned.keras.sparsity_of(self.model))

    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(inputs(), np.arange(128) % 3, batch_size=8, verbose=0, callbacks=[callback, Watch()])
    assert [callback.share(t) for t in (0, 2, 6, 10, 99)] == pytest.approx([0, 0, 0.65625, 0.75, 0.75])
    assert seen[0] == 0
    assert seen[5] == pytest.approx(0.65625, abs=0.01)
    assert seen[9:] == pytest.approx([0.75] * 7, abs=0.01)
    assert seen == sorted(seen)


def fitted(model: Any, *callbacks: Any, count: int = 128, optimizer: Any = "adam", **options: Any) -> Any:
    """The model, trained on its inputs to answer nothing."""
    shape = tuple(model.inputs[0].shape[1:])
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype("float32")
    model.compile(optimizer, "mse", **options)
    wanted = np.ones((count, *model.outputs[0].shape[1:]), "float32")
    model.fit(x, wanted, batch_size=8, verbose=0, callbacks=list(callbacks))
    return model


def test_averages_of_weights_lose_no_zeros() -> None:
    model = network(16)
    value = np.array(keras.ops.convert_to_numpy(model.layers[0].kernel.value))
    value[:, ::2] = 0
    model.layers[0].kernel.assign(value)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    fitted(model, sned.keras.GradualSparsity(0.5, end=8, every=2), optimizer=optimizer)
    assert sned.keras.sparsity_of(model) == pytest.approx(0.5, abs=0.01)


def test_weights_put_back_by_another_callback_lose_no_zeros() -> None:
    model = network(16)

    class Back(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.first = self.model.get_weights()

        def on_train_end(self, logs: Any = None) -> None:
            self.model.set_weights(self.first)

    fitted(model, Back(), sned.keras.GradualSparsity(0.5, end=8, every=2))
    assert sned.keras.sparsity_of(model) == pytest.approx(0.5, abs=0.01)


def test_training_that_ends_early_is_warned_about() -> None:
    callback = sned.keras.GradualSparsity(0.8, end=20, every=2)
    model = network(16)
    with pytest.warns(UserWarning, match=r"after batch 16, but `end` is 20: 79%.*of 80%.*`fit` again"):
        fitted(model, callback)
    with warnings.catch_warnings(record=True) as caught:
        fitted(model, callback)
    assert not any("`end`" in str(one.message) for one in caught)
    assert sned.keras.sparsity_of(model) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("save_freq", ["epoch", 16])
def test_zeros_go_on_growing_after_a_crash(save_freq: Any, tmp_path: Path) -> None:
    """`BackupAndRestore` brings back the weights and the number of the epoch, and nothing of other callbacks."""
    seen: list[np.ndarray] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            seen.append(np.array(keras.ops.convert_to_numpy(self.model.layers[0].kernel.value)) == 0)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if len(seen) == 16:
                raise RuntimeError("no power")

    def train() -> Any:
        model = network(40)
        model.compile("adam", "mse")
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=save_freq)
        callbacks = [sned.keras.GradualSparsity(0.8, end=30, every=2), backup, Watch()]
        model.fit(inputs(), np.ones((128, 3)), batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
        return model

    with pytest.raises(RuntimeError, match="no power"):
        train()
    model = train()
    assert 0.5 < seen[15].mean() < 0.75
    assert seen[16][seen[15]].all()
    assert sned.keras.sparsity_of(model) == pytest.approx(0.8, abs=0.01)


def test_another_model_begins_anew() -> None:
    callback = sned.keras.GradualSparsity(np.float32(0.5), end=np.int64(16), every=2)
    for width in (16, 24):
        assert sned.keras.sparsity_of(fitted(network(width), callback)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="one batch an execution under PyTorch")
def test_batches_are_counted_where_an_execution_has_several() -> None:
    callback = sned.keras.GradualSparsity(0.8, end=14, every=3)
    model = fitted(network(16), callback, steps_per_execution=4)
    assert sned.keras.sparsity_of(model) == pytest.approx(0.8, abs=0.01)
    assert callback._batches == 16


def test_what_has_yet_to_learn_is_no_zero_to_keep() -> None:
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    dense = layers.Dense(4)
    model = keras.Model(inputs, dense(layers.GRU(4)(x)))
    dense.enable_lora(1)  # its second factor starts as zeros
    for callback in (sned.keras.HoldZeros(), sned.keras.GradualSparsity(0.5, end=8, every=2)):
        fitted(model, callback, optimizer=keras.optimizers.SGD(0.1))
        for variable in model.trainable_variables:
            zeros = (np.array(keras.ops.convert_to_numpy(variable.value)) == 0).mean()
            assert zeros < 0.6, variable.path


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UserError, match=r"`sparsity`.*got '50%'"):
        sned.keras.GradualSparsity("50%", end=5)
    with pytest.raises(UserError, match=r"`sparsity`.*got 1"):
        sned.keras.GradualSparsity(1.0, end=5)
    with pytest.raises(UserError, match=r"`begin` < `end`"):
        sned.keras.GradualSparsity(0.5, begin=5, end=5)
    with pytest.raises(UserError, match=r"Whole numbers.*got 0, None and 20"):
        sned.keras.GradualSparsity(0.5, end=None)
    with pytest.raises(UserError, match=r"`temperature`.*-1"):
        sned.keras.Distiller(network(4), network(4), temperature=-1)
    with pytest.raises(UserError, match=r"`temperature`.*'4'"):
        sned.keras.Distiller(network(4), network(4), temperature="4")
    with pytest.raises(UserError, match=r"`weight`"):
        sned.keras.Distiller(network(4), network(4), weight=0)
    with pytest.raises(ModelError, match=r"must have its variables"):
        sned.keras.Distiller(keras.Sequential([layers.Dense(3)]), network(4))
    model = network(4)
    model.compile("adam", "sparse_categorical_crossentropy")
    for only in (["convv/*"], "convv/*"):
        with pytest.raises(NotFoundError, match=r"No weight fits 'convv/\*'"):
            model.fit(inputs(), np.zeros(128), verbose=0, callbacks=[sned.keras.HoldZeros(only)])
