"""Models of mixed precision against their twins in single precision, which have the same variables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import sned
import sned.keras
from sned.errors import ModelError
from tests.export.test_keras import SUFFIXES, needed
from tests.surgery.keras.models import images, made
from tests.surgery.keras.test_apply import answers, close, zeroed


@contextmanager
def policy(name: str) -> Iterator[None]:
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


def mixed(name: str, kind: str = "mixed_bfloat16") -> tuple[Any, Any]:
    with policy(kind):
        return made(name)


def policies(model: Any) -> list[str]:
    return [layer.dtype_policy.name for layer in model._flatten_layers()]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("residual", "mixed_float16"),
        ("transformer", "mixed_bfloat16"),
        ("lstm", "mixed_float16"),
        ("nested", "mixed_bfloat16"),
        ("subclassed", "mixed_float16"),
    ],
)
def test_what_remains_is_that_of_the_twin_in_single_precision(name: str, kind: str) -> None:
    model, x = mixed(name, kind)
    twin, _ = made(name)
    graph = sned.trace(model, x)
    assert [(g.name, g.size) for g in graph.groups] == [(g.name, g.size) for g in sned.trace(twin, x).groups]
    exact = {group.name for group in graph.groups if group.exact}
    plan = graph.plan(
        {name: units for name, units in sned.plan(graph, sparsity=0.5).removed.items() if name in exact}
    )
    before = policies(model)
    small = sned.apply(model, plan)
    assert policies(model) == policies(small) == before
    assert kind in before
    for mine, theirs in zip(answers(small, x), answers(zeroed(twin, graph, plan), x), strict=True):
        assert np.abs(mine - theirs).max() < 0.05 * np.abs(theirs).max()


def test_zeros_are_those_of_single_precision_and_it_trains_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8, 8, 3)).astype("float32")
    found = []
    for model, inputs in (mixed("sequential_cnn", "mixed_float16"), made("sequential_cnn")):
        sparse = sned.sparsify(model, inputs, sparsity=0.5, calibration=[x]).model
        found.append([keras.ops.convert_to_numpy(variable.value) for variable in sparse.weights])
        if len(found) == 1:
            taught = sned.keras.Distiller(
                sned.apply(model, sned.plan(sned.trace(model, inputs), sparsity=0.5)), model
            )
            taught.compile("sgd", "mse")
            history = taught.fit(x, np.zeros((64, *model.output_shape[1:])), epochs=1, verbose=0).history
            assert np.isfinite(history["loss"]).all()
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("to", SUFFIXES)
def test_files_compute_in_single_precision_and_say_so(to: str, tmp_path: Path) -> None:
    needed(to)
    (model, x), (twin, _) = mixed("residual"), made("residual")
    file = sned.export(model, x, to=to, out=tmp_path / f"model{SUFFIXES[to]}", runs=0)
    assert "The model computes in bfloat16; the file does in float32, and was compared in it." in file.notes
    close([file.module()(torch.from_numpy(x)).numpy()], answers(twin, x))


def test_variables_in_bfloat16_go_to_no_file(tmp_path: Path) -> None:
    with policy("bfloat16"):
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ModelError, match=r"Variables in bfloat16.*'float32' or 'mixed_bfloat16'"):
        sned.export(model, images(), out=tmp_path / "model.onnx", runs=0)
    with pytest.raises(ModelError, match="Variables in bfloat16"):
        sned.prune(model, images(), budget=sned.Budget(macs="50%"))


def test_quantised_models_are_told_to_be_pruned_before() -> None:
    hidden = keras.layers.Dense(8, name="hidden")
    model = keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(3)])
    model.quantize("int8")
    with pytest.raises(
        ModelError, match=r"Dense \(layer 'hidden'\) was quantised to int8\. Prune the model as"
    ):
        sned.trace(model, np.ones((2, 6), "float32"))
