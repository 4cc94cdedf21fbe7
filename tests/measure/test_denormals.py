from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from sned.errors import NotFoundError
from sned.measure import denormal_share, denormals, denormals_as_zero
from sned.timing import Latency

TINY = 1e-30
"""Its square is a denormal number."""


def product(path: Path, factor: float) -> tuple[Path, dict[str, np.ndarray]]:
    """An ONNX file of `relu(x * y)`, and inputs whose products are `factor * TINY`."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 4096]) for name in "xy"]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [64, 4096])
    nodes = [helper.make_node("Mul", ["x", "y"], ["z"]), helper.make_node("Relu", ["z"], ["out"])]
    graph = helper.make_graph(nodes, "product", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    feeds = {"x": np.full((64, 4096), TINY, np.float32), "y": np.full((64, 4096), factor, np.float32)}
    return path, feeds


def opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def can() -> None:
    with denormals_as_zero() as possible:
        pass
    if not possible:
        pytest.skip("this processor cannot take denormal numbers for zero")


@pytest.mark.usefixtures("can")
def test_denormals_are_zero_inside_and_themselves_again_after(tmp_path: Path) -> None:
    path, feeds = product(tmp_path / "a.onnx", 1e-10)
    session = opened(path)
    with denormals_as_zero():
        assert not np.any(session.run(None, feeds)[0])
        assert float(torch.tensor(TINY) * 1e-10) == 0
    assert np.all(session.run(None, feeds)[0])
    with pytest.raises(KeyError), denormals_as_zero():
        raise KeyError
    assert float(torch.tensor(TINY) * 1e-10) > 0


@pytest.mark.usefixtures("can")
def test_the_share_is_what_is_saved_when_they_are_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, feeds = product(tmp_path / "a.onnx", 1e-10)
    found = {}

    def timed(functions: Mapping[str, Callable[[], Any]], **_: object) -> dict[str, Latency]:
        found.update({name: np.any(function()[0]) for name, function in functions.items()})
        return {name: Latency(9.0, took, 9.0, 5, 1) for name, took in zip(functions, (8.0, 6.0), strict=True)}

    monkeypatch.setattr(denormals, "interleaved", timed)
    assert denormal_share(path, feeds) == pytest.approx(0.25)
    assert found == {"as they are": True, "as zero": False}


def test_nothing_is_timed_where_the_processor_knows_no_such_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, feeds = product(tmp_path / "a.onnx", 1e-10)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: False)
    monkeypatch.delattr(denormals, "interleaved")
    assert denormal_share(path, feeds) == 0


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        denormal_share(tmp_path / "none.onnx", {})
