"""Keras models as files: held against the model itself, on inputs that the export never saw."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import torch  # noqa: E402
from keras import layers  # noqa: E402

import sned  # noqa: E402
from sned.errors import ExportError, UserError  # noqa: E402
from sned.export.target import DYNAMIC, FP16, FP32, INT8  # noqa: E402
from sned.surgery.keras.road import inputs_of, recorded_network  # noqa: E402
from tests.surgery.keras.models import images, made, tokens  # noqa: E402
from tests.surgery.keras.test_apply import answers  # noqa: E402

SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "savedmodel": ""}
ERRORS = {FP32: 1e-5, FP16: 2e-3, INT8: 0.08, DYNAMIC: 0.08}


def needed(to: str) -> None:
    for module in {"onnx": [], "litert": ["tensorflow", "ai_edge_quantizer"], "savedmodel": ["tensorflow"]}[
        to
    ]:
        if find_spec(module) is None:
            pytest.skip(f"needs {module}")


@lru_cache
def model_and_inputs(name: str) -> Any:
    return made(name)


def unseen(name: str, count: int) -> Any:
    """Other inputs than the example."""
    rng = np.random.default_rng(5)

    def drawn(x: Any) -> Any:
        shape = (count, *x.shape[1:])
        if x.dtype.kind == "i":
            return rng.integers(0, 11, shape).astype(x.dtype)
        return rng.standard_normal(shape).astype(x.dtype)

    return keras.tree.map_structure(drawn, model_and_inputs(name)[1])


def exported(tmp_path: Path, name: str, to: str, precision: str = FP32, **words: Any) -> Any:
    needed(to)
    model, x = model_and_inputs(name)
    return sned.export(
        model,
        x,
        to=to,
        out=tmp_path / f"model{SUFFIXES[to]}",
        quantize=None if precision == FP32 else precision,
        **{"calibration": [(unseen(name, 32), np.zeros(32))], "runs": 0, **words},
    )


def error(file: Any, model: Any, inputs: Any) -> float:
    """Largest relative error of an output."""
    given = keras.tree.map_structure(torch.from_numpy, inputs)
    got = file.module()(given)
    pairs = zip(got if isinstance(got, tuple) else (got,), answers(model, inputs), strict=True)
    return max(float(np.linalg.norm(a.numpy() - b) / np.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("name", ["residual", "shared", "transformer", "subclassed"])
def test_the_file_computes_what_the_model_computes(tmp_path: Path, name: str, to: str) -> None:
    file = exported(tmp_path, name, to)
    assert error(file, model_and_inputs(name)[0], unseen(name, 7)) < ERRORS[FP32]
    assert file.max_rel_diff < 1e-4
    assert file.dynamic_batch == (to != "litert")


@pytest.mark.parametrize(
    ("to", "precision"),
    [(to, p) for to in ("onnx", "litert") for p in (FP16, INT8, DYNAMIC)],
)
def test_coarser_files_are_smaller_and_stay_close(tmp_path: Path, to: str, precision: str) -> None:
    model = model_and_inputs("sequential_cnn")[0]
    fine = exported(tmp_path, "sequential_cnn", to).size_bytes
    file = exported(tmp_path, "sequential_cnn", to, precision)
    assert file.precision == precision
    assert 1e-6 < error(file, model, unseen("sequential_cnn", 64)) < ERRORS[precision]
    if precision == INT8:
        assert file.parity.rows >= 32
    assert file.size_bytes < fine or to == "onnx"  # of so small a network the text of the graph is the most


def test_loops_are_told_to_go_to_8_bits_without_ranges(tmp_path: Path) -> None:
    needed("litert")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the same under each backend, and a process more")
    model, x = model_and_inputs("lstm")
    with pytest.raises(ExportError, match=r"in int8: .*loops, which LSTM and GRU.*`quantize='int8-dynamic'`"):
        sned.export(
            model, x, to="litert", quantize="int8", calibration=[x] * 8, out=tmp_path / "m.tflite", runs=0
        )
    file = sned.export(model, x, to="litert", quantize="int8-dynamic", out=tmp_path / "m.tflite", runs=0)
    assert error(file, model, x) < ERRORS[DYNAMIC]


def test_onnx_files_have_inputs_and_outputs_by_the_names_of_the_model(tmp_path: Path) -> None:
    import onnxruntime

    file = exported(tmp_path, "shared", "onnx")
    session = onnxruntime.InferenceSession(file.path)
    assert [entry.name for entry in session.get_inputs()] == [*file.inputs] == ["a", "b"]
    assert [entry.name for entry in session.get_outputs()] == [*file.outputs] == ["raw", "score"]
    model, x = model_and_inputs("shared")
    got = session.run(file.outputs, x)
    for ours, theirs in zip(got, answers(model, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    within = sned.export.export_onnx(recorded_network(model, x), inputs_of(x), tmp_path / "within.onnx")
    assert within.inputs == ("a", "b")  # as `sned.prune` writes it


def test_a_name_of_an_input_that_is_used_inside_is_told_apart(tmp_path: Path) -> None:
    first, second = keras.Input((6,), name="add"), keras.Input((6,), name="x")
    both = layers.Add(name="both")([first, second])
    model = keras.Model([first, second], {"add_1": layers.Add(name="again")([both, first])})
    x = np.ones((2, 6), np.float32)
    file = sned.export(model, [x, 2 * x], out=tmp_path / "m.onnx", runs=0)
    assert (file.inputs, file.outputs) == (("add_2", "x"), ("add_1_2",))
    assert float(file.module()([torch.from_numpy(x), torch.from_numpy(2 * x)])[0, 0]) == 4.0


def test_inputs_and_outputs_keep_their_names_and_structure(tmp_path: Path) -> None:
    file = exported(tmp_path, "shared", "litert")
    assert file.inputs == ("a", "b")
    assert file.outputs == ("raw", "score")
    model, x = model_and_inputs("shared")
    seen: list[Any] = []

    def measure(asked: Any) -> float:
        seen.append(asked.predict(x, verbose=0))
        return float(np.sum(seen[-1]["score"]))

    file = exported(tmp_path, "shared", "litert", evaluate=measure)
    assert set(seen[0]) == set(seen[1]) == {"raw", "score"}
    assert file.accuracy == pytest.approx(file.torch_accuracy, rel=1e-4)
    assert file.torch_accuracy == pytest.approx(float(answers(model, x)[1].sum()), rel=1e-4)


def test_the_file_is_evaluated_by_the_metrics_of_the_model(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", "mse", metrics=["mae"])
    wanted = np.ones((2, 3), "float32")

    def measure(asked: Any) -> float:
        return -float(asked.evaluate(images(), wanted, verbose=0, return_dict=True)["mae"])

    file = sned.export(model, images(), out=tmp_path / "model.onnx", evaluate=measure, runs=2)
    assert file.accuracy == pytest.approx(file.torch_accuracy, rel=1e-4)
    assert file.torch_accuracy == pytest.approx(-np.abs(answers(model, images())[0] - 1).mean(), rel=1e-4)
    assert file.latency is not None
    assert file.torch_latency is None


def test_tensorflow_alone_serves_the_folder(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    exported(tmp_path, "residual", "savedmodel")
    loaded = tensorflow.saved_model.load(str(tmp_path / "model"))
    served = loaded.serve(unseen("residual", 5))
    model = model_and_inputs("residual")[0]
    np.testing.assert_allclose(np.asarray(served), answers(model, unseen("residual", 5))[0], atol=1e-5)


def test_a_pruned_model_makes_a_smaller_file(tmp_path: Path) -> None:
    model, x = model_and_inputs("residual")
    whole = exported(tmp_path, "residual", "onnx")
    small = sned.apply(model, sned.plan(sned.trace(model, x), sparsity=0.5))
    cut = sned.export(small, x, out=tmp_path / "small.onnx", runs=0)
    assert cut.size_bytes < 0.8 * whole.size_bytes
    assert error(cut, small, unseen("residual", 3)) < ERRORS[FP32]


def test_zeros_are_packed_for_litert(tmp_path: Path) -> None:
    needed("litert")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(256, activation="relu"), layers.Dense(8)])
    for layer in model.layers:
        kernel = np.array(layer.get_weights()[0])
        layer.kernel.assign(kernel * (np.random.default_rng(0).random(kernel.shape) > 0.9))
    x = np.random.default_rng(1).standard_normal((4, 64)).astype("float32")
    sizes = [
        sned.export(model, x, to="litert", out=tmp_path / "m.tflite", sparse=sparse, runs=0).size_bytes
        for sparse in (False, None)
    ]
    assert sizes[1] < 0.5 * sizes[0]


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, _ = model_and_inputs("transformer")
    before = [np.array(keras.ops.convert_to_numpy(v.value)) for v in model.weights]
    exported(tmp_path, "transformer", "onnx", INT8, calibration=[tokens()] * 8)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), value)


def test_what_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_and_inputs("residual")
    with pytest.raises(UserError, match=r"'savedmodel' is written of Keras models alone.*onnx"):
        sned.export(torch.nn.Linear(2, 2), torch.ones(1, 2), to="savedmodel", out=tmp_path / "m")
    with pytest.raises(UserError, match=r"TensorFlow SavedModel files hold 32-bit floats alone, got 'int8'"):
        sned.export(model, x, to="savedmodel", quantize="int8", out=tmp_path / "m")
    monkeypatch.setattr("sned.export.target.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"tensorflow.*pip install 'sned\[tensorflow\]'"):
        sned.export(model, x, to="savedmodel", out=tmp_path / "m")
    assert not list(tmp_path.iterdir())
