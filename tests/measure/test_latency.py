from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from sned.errors import ExampleError, MeasureError, NotFoundError
from sned.measure import measure_onnx, random_feeds


def write_products(path: Path, repeats: int, shape: tuple[str | int, ...] = ("batch", 96)) -> Path:
    """An ONNX file of `repeats` matrix products, written by hand."""
    size = shape[-1]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [size, size], np.eye(size, dtype=np.float32).ravel())
    names = ["x", *(f"h{k}" for k in range(1, repeats)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))]
    graph = helper.make_graph(nodes, "products", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_file_with_twenty_times_the_work_takes_longer(tmp_path: Path) -> None:
    files = {
        "one": write_products(tmp_path / "a.onnx", 2),
        "twenty": write_products(tmp_path / "b.onnx", 40),
    }
    times = measure_onnx(files, random_feeds(files["one"], batch=64), runs=15, warmup=2)
    assert times["twenty"].median_ms > 4 * times["one"].median_ms
    assert times["one"].runs == 15
    assert times["one"].threads == 1
    assert times["one"].p10_ms <= times["one"].median_ms <= times["one"].p90_ms


def test_inputs_are_made_up_from_what_the_file_says(tmp_path: Path) -> None:
    path = write_products(tmp_path / "a.onnx", 1, shape=("batch", 5, 4))
    feeds = random_feeds(path, batch=3)
    assert feeds["x"].shape == (3, 5, 4)
    assert feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(feeds["x"], random_feeds(path, batch=3)["x"])


def test_an_open_axis_other_than_the_batch_must_be_given(tmp_path: Path) -> None:
    path = write_products(tmp_path / "a.onnx", 1, shape=("batch", "length", 4))
    with pytest.raises(
        ExampleError, match=r"Input 'x' takes \[batch, length, 4\]: the size of length is open"
    ):
        random_feeds(path)
    assert random_feeds(path, shapes={"x": (2, 9, 4)})["x"].shape == (2, 9, 4)
    with pytest.raises(ExampleError, match=r"Input 'x' takes \[batch, length, 4\], got \[2, 9, 5\]"):
        random_feeds(path, shapes={"x": (2, 9, 5)})
    with pytest.raises(ExampleError, match=r"has no input 'z'\. Its inputs are 'x'"):
        random_feeds(path, shapes={"z": (1,)})


def test_inputs_that_do_not_fit_are_named_before_anything_is_timed(tmp_path: Path) -> None:
    path = write_products(tmp_path / "a.onnx", 1)
    with pytest.raises(MeasureError, match=r"could not run 'one' on x \[1, 97\]"):
        measure_onnx({"one": path}, {"x": np.zeros((1, 97), np.float32)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"There is no file '.*absent\.onnx'"):
        measure_onnx({"one": tmp_path / "absent.onnx"}, {})


def test_a_type_that_cannot_be_made_up_is_named(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["text"], ["y"])], "text", [x], [y])
    path = tmp_path / "text.onnx"
    opsets = [helper.make_opsetid("", 20)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    with pytest.raises(ExampleError, match=r"Input 'text' is of tensor\(string\)"):
        random_feeds(path)
