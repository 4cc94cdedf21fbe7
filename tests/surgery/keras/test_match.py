"""Label-free matching of a pruned Keras model: layer by layer, and by logits where the model answers probabilities."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers

import sned
from sned.graph.example import describe
from sned.repair import match
from sned.surgery.keras.road import inputs_of, network_of, pruned_keras, traced


def classifier() -> Any:
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((12, 12, 3))
    for name, width in (("a", 8), ("b", 12), ("c", 10)):
        x = layers.Conv2D(width, 3, padding="same", use_bias=name != "b", name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(6, activation="softmax", name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    model.get_layer("head").kernel.assign(4 * model.get_layer("head").kernel)
    return model


def images(count: int) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal((count, 16, 16, 3))
    smooth = sum(noise[:, i : i + 12, j : j + 12] for i in range(5) for j in range(5))
    return np.asarray(smooth, np.float32)


def test_features_are_those_of_the_channels_kept() -> None:
    x = images(4)
    dense = network_of(classifier())
    graph = traced(dense, describe(inputs_of(x[:2])))
    plan = graph.plan({"a": [1, 4], "c": [0, 2, 9]})
    small, _ = pruned_keras(dense, graph, plan)
    kept = small.inputs_kept(dense)
    left = {name: None if index is None else index.tolist() for name, index in kept.items()}
    assert left == {
        "a.kernel": None,
        "b.kernel": [0, 2, 3, 5, 6, 7],
        "c.kernel": None,
        "head.kernel": [1, 3, 4, 5, 6, 7, 8],
    }
    given = torch.from_numpy(x)
    with dense.entering(kept) as wanted, torch.no_grad():
        dense(given)
    with small.entering(dict.fromkeys(kept)) as made, torch.no_grad():
        small(given)
    ours, dense_ones = ([each for (each,) in seen.values()] for seen in (made, wanted))
    assert [t.shape for t in ours] == [t.shape for t in dense_ones]
    # What enters the first two layers is what the dense network's kept channels are.
    for mine, theirs in zip(ours[:2], dense_ones[:2], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_matching_brings_probabilities_closer() -> None:
    model, x = classifier(), images(160)
    dense = network_of(model)
    graph = traced(dense, describe(inputs_of(x[:2])))
    plan = graph.plan({"a": [1, 4], "b": [0, 5, 7], "c": [0, 2, 9]})
    small, _ = pruned_keras(dense, graph, plan)
    found = match(small, dense, [torch.from_numpy(x)], steps=60, rate=5e-3)
    assert found.best > 0
    looks = dict(found.divergences)
    assert looks[found.best] < 0.6 * looks[0]


def test_the_short_road_matches() -> None:
    model, x = classifier(), images(160)
    result = sned.prune(model, x[:2], budget=sned.Budget(macs="60%"), calibration=[x], match_seconds=3)
    assert any(note.startswith("Matching: ") for note in result.report.notes)
    assert isinstance(result.model, keras.Model)
    fresh = images(200)[160:]
    wanted, got = (m.predict(fresh, verbose=0).argmax(-1) for m in (model, result.model))
    assert (wanted == got).mean() > 0.5


@pytest.mark.usefixtures("steps_for_seconds")
def test_zeros_hold_while_the_others_match_the_original() -> None:
    model, x, fresh = classifier(), images(400), images(440)[400:]
    plain, matched = (
        sned.sparsify(model, x[:2], sparsity=0.7, calibration=[x], match_seconds=seconds)
        for seconds in (None, 4.0)
    )
    for mine, theirs in zip(matched.model.get_weights(), plain.model.get_weights(), strict=True):
        if mine.ndim > 1:
            np.testing.assert_array_equal(mine == 0, theirs == 0)
    assert "Matching: " in matched.note
    wanted, alone, together = (
        np.log(m.predict(fresh, verbose=0)) for m in (model, plain.model, matched.model)
    )
    assert np.abs(together - wanted).mean() < np.abs(alone - wanted).mean()


def test_channels_that_are_a_kernel_each_are_not_compared_once_one_is_left() -> None:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12, 12, 3))
    for layer in (
        layers.Conv2D(4, 3, name="a"),
        layers.DepthwiseConv2D(3, name="b"),
        layers.Conv2D(8, 1, name="c"),
    ):
        x = layers.ReLU()(layer(x))
    dense = network_of(keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x))))
    graph = traced(dense, describe(inputs_of(images(2))))
    small, _ = pruned_keras(dense, graph, graph.plan({"a": [0, 1, 3]}))
    assert {name.partition(".")[0] for name in small.inputs_kept(dense)} == {"a", "c", "head"}
    found = match(small, dense, [torch.from_numpy(images(40))], steps=2)
    assert found.steps == 2


def test_zeros_hold_while_units_go_and_while_the_rest_is_matched() -> None:
    model, x = classifier(), images(100)
    sparse = sned.sparsify(model, x[:2], sparsity=0.7, calibration=[x]).model
    result = sned.prune(sparse, x[:2], budget=sned.Budget(sparsity=0.3), calibration=[x], match_seconds=0.5)
    for name in ("a", "b", "c"):
        kernel = keras.ops.convert_to_numpy(result.model.get_layer(name).kernel)
        assert (kernel == 0).mean() > 0.4
    again = sned.sparsify(sparse, x[:2], sparsity=0.3, calibration=[x]).model
    for mine, theirs in zip(again.get_weights(), sparse.get_weights(), strict=True):
        if mine.ndim > 1:
            assert (mine[theirs == 0] == 0).all()
