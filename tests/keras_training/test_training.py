"""Distillation and zeros through `fit`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
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


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UserError, match=r"`sparsity`.*got 1"):
        sned.keras.GradualSparsity(1.0, end=5)
    with pytest.raises(UserError, match=r"`begin` < `end`"):
        sned.keras.GradualSparsity(0.5, begin=5, end=5)
    with pytest.raises(UserError, match=r"`temperature`.*-1"):
        sned.keras.Distiller(network(4), network(4), temperature=-1)
    with pytest.raises(UserError, match=r"`weight`"):
        sned.keras.Distiller(network(4), network(4), weight=0)
    with pytest.raises(ModelError, match=r"must have its variables"):
        sned.keras.Distiller(keras.Sequential([layers.Dense(3)]), network(4))
    model = network(4)
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(NotFoundError, match=r"No weight fits 'convv/\*'"):
        model.fit(inputs(), np.zeros(128), verbose=0, callbacks=[sned.keras.HoldZeros(["convv/*"])])
