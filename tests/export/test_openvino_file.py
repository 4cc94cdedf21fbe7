"""A smaller file computes the same, and is still called by the same names."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

from sned.export.openvino_file import compact  # noqa: E402

PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two quantised layers and a bias, every constant a node of its own."""
    ops = openvino.opset13
    rng = np.random.default_rng(0)

    def number(value: float) -> object:
        return ops.constant(np.float32(value))

    x = ops.parameter([-1, 3, 8, 8], np.float32, name="image")
    x.output(0).get_tensor().set_names({"image"})
    held = x
    for channels in (3, 4):
        held = ops.fake_quantize(held, number(-1), number(1), number(-1), number(1), 256)
        weight = ops.constant(rng.integers(-127, 127, (4, channels, 3, 3), np.int8))
        weight = ops.multiply(
            ops.convert(weight, np.float32), ops.constant(np.full((4, 1, 1, 1), 0.01, np.float32))
        )
        held = ops.convolution(held, weight, [1, 1], [1, 1], [1, 1], [1, 1])
        held = ops.relu(ops.add(held, ops.constant(np.ones((1, 4, 1, 1), np.float32))))
    held.output(0).get_tensor().set_names({"answer"})
    written = tmp_path / "model.xml"
    openvino.save_model(
        openvino.Model([ops.result(held)], [x], "two_layers"), written, compress_to_fp16=False
    )
    return written


def kernels(path: Path) -> Counter[tuple[str, str]]:
    """What the CPU's runtime makes of a file: kinds of layers and their precisions, constants left aside."""
    made = openvino.Core().compile_model(path, "CPU", PRECISE).get_runtime_model().get_ordered_ops()
    told = [(op.get_rt_info()["layerType"].value, op.get_rt_info()["runtimePrecision"].value) for op in made]
    return Counter(one for one in told if one[0] != "Const")


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    """What a file says, by the names of its input and its output."""
    compiled = openvino.Core().compile_model(path, "CPU", PRECISE)
    return np.array(compiled({"image": x})["answer"])


def test_smaller_and_the_same(path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, size = answers(path, x), path.stat().st_size
    compact(path)
    assert path.stat().st_size < 0.5 * size
    assert np.ptp(before) > 0
    np.testing.assert_array_equal(answers(path, x), before)


def test_equal_limits_are_one_and_equal_scales_and_biases_stay(path: Path) -> None:
    compact(path)
    held = [op for op in openvino.Core().read_model(path).get_ops() if op.get_type_name() == "Constant"]
    assert len(held) == 2 + 2 + 2 + 2  # two limits, and of each layer weights, scales and biases


def test_the_runtime_runs_the_same_kernels(path: Path) -> None:
    before = kernels(path)
    compact(path)
    assert kernels(path) == before
    assert before["Convolution", "u8"] == 2


def test_what_is_so_by_default_goes_unsaid(path: Path) -> None:
    text = path.read_text()
    assert 'auto_broadcast="numpy"' in text
    assert 'auto_pad="explicit"' in text
    compact(path)
    made = {
        op.get_type_name(): op.get_attributes() for op in openvino.Core().read_model(path).get_ordered_ops()
    }
    assert made["Add"]["auto_broadcast"] == "numpy"
    assert made["Convolution"]["auto_pad"] == "explicit"
    assert not any(word in path.read_text() for word in ("numpy", "explicit", "<data/>", ", "))


def test_any_batch_is_taken_still(path: Path) -> None:
    compact(path)
    model = openvino.Core().read_model(path)
    assert str(model.input("image").partial_shape) == "[?,3,8,8]"
    assert str(model.output("answer").partial_shape) == "[?,4,8,8]"


def test_twice_changes_nothing(path: Path) -> None:
    compact(path)
    once = path.read_bytes()
    compact(path)
    assert path.read_bytes() == once
