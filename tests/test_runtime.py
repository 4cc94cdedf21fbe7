from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sned.errors import MeasureError, NotFoundError
from sned.runtime import open_session, session_options


def doubling_model() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    opsets = [helper.make_opsetid("", 20)]
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def test_options_hold_what_makes_two_sessions_comparable() -> None:
    options = session_options(3)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("release", "threads", "wait", "stop"),
    [
        ("1.31.0", 2, "200", None),
        ("1.26.0", 4, "200", None),
        ("1.25.1", 2, None, "1"),
        ("1.31.0", 1, None, "1"),
    ],
)
def test_threads_stay_awake_where_the_runtime_can_say_for_how_long(
    monkeypatch: pytest.MonkeyPatch, release: str, threads: int, wait: str | None, stop: str | None
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", release)
    options = session_options(threads, awake=True)
    for entry, value in (("session.intra_op.spin_duration_us", wait), ("session.force_spinning_stop", stop)):
        if value is None:
            with pytest.raises(RuntimeError, match="does not have"):
                options.get_session_config_entry(entry)
        else:
            assert options.get_session_config_entry(entry) == value


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(MeasureError, match="`threads` must be at least 1, got 0"):
        session_options(0)


def test_a_model_in_memory_and_one_in_a_file_run_alike(tmp_path: Path) -> None:
    path = tmp_path / "doubling.onnx"
    path.write_bytes(doubling_model())
    x = np.array([[1.5, -2.0]], np.float32)
    for source in (doubling_model(), path, str(path)):
        [y] = open_session(source).run(None, {"x": x})
        np.testing.assert_array_equal(y, 2 * x)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"There is no file '.*absent\.onnx'"):
        open_session(tmp_path / "absent.onnx")


def test_a_file_that_is_not_onnx_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(
        MeasureError, match=r"cannot run '.*garbage\.onnx'.*Check that the file is a whole ONNX"
    ):
        open_session(path)
