from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions
from torch import Tensor, nn

import sned
from sned.errors import ExportError, ModelError
from sned.export import Exported, export_onnx, feeds
from sned.export.capture import Subject
from sned.export.onnx import _convert
from sned.export.onnx_file import compact, file_bytes, save
from sned.files import staged_path
from sned.runtime import open_session
from tests.export.networks import Of

torch.set_num_threads(1)


Case = tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Exported]


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(6, 4)
        self.calls = 0

    def forward(self, image: Tensor, bonus: Tensor | None = None) -> Prediction:
        self.calls += 1
        features = self.body(image).mean((2, 3))
        return Prediction(self.head(features) + (0 if bonus is None else bonus), features)


class Deep(nn.Module):
    """Puts a module where its path says something."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Identity(), inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


def decide_on_values(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = Classifier()
    model.body[1].running_mean += 0.3
    model.train()
    model.head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = {"image": torch.randn(2, 3, 8, 8), "bonus": torch.randn(2, 4)}
    result = export_onnx(model, example, tmp_path_factory.mktemp("onnx") / "new folder" / "model.onnx")
    return model, before, example, result


def test_the_file_computes_what_the_model_computes_at_any_batch(exported: Case) -> None:
    model, _, _, result = exported
    session = open_session(result.path)
    model = deepcopy(model).eval()
    for batch in (1, 5):
        image, bonus = torch.randn(batch, 3, 8, 8), torch.randn(batch, 4)
        expected = model(image, bonus)
        logits, features = session.run(None, {"image": image.numpy(), "bonus": bonus.numpy()})
        np.testing.assert_allclose(logits, expected.logits.detach(), atol=1e-5)
        np.testing.assert_allclose(features, expected.features.detach(), atol=1e-5)


def test_what_is_told_about_the_file_is_so(exported: Case) -> None:
    _, _, example, result = exported
    assert result.dynamic_batch
    assert result.inputs == ("image", "bonus")
    assert result.outputs == ("logits", "features")
    assert result.batches == (1, 2, 3)
    assert result.size_bytes == result.path.stat().st_size
    assert 0 <= result.max_abs_diff < 1e-5
    assert result.parity.top1_agreement == 1.0
    assert result.parity.rows == 2 + 1 + 3
    model = onnx.load(result.path)
    assert model.opset_import[0].version == result.opset
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {name: array.shape for name, array in feeds(result, example, batch=7).items()} == {
        "image": (7, 3, 8, 8),
        "bonus": (7, 4),
    }


def test_the_model_is_left_as_it_was(exported: Case) -> None:
    model, before, _, _ = exported
    assert model.training
    assert model.body.training
    assert not model.head.training
    assert model.calls == 0
    assert "forward" not in vars(model)
    assert not model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_that_the_forward_fixes_stays_fixed_and_the_result_says_why(tmp_path: Path) -> None:
    model = Deep(Of(lambda x: x.reshape(2, 3, -1).sum(2)))
    result = export_onnx(model, torch.randn(2, 12), tmp_path / "model.onnx")
    assert not result.dynamic_batch
    assert "fixes the size of the batch" in result.static_because
    assert result.batches == (2,)


class Passing(nn.Module):
    """Hands its inputs on, under names that inputs have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, p: Tensor, q: Tensor) -> dict[str, Tensor]:
        return {"p": self.head(p + q), "again": q, "q": p, "p_2": q}


def test_inputs_that_are_outputs_as_well_keep_their_names(tmp_path: Path) -> None:
    example = {"p": torch.randn(2, 4), "q": torch.randn(2, 4)}
    result = export_onnx(Passing(), example, tmp_path / "model.onnx")
    assert result.inputs == ("p", "q")
    session = open_session(result.path)
    assert tuple(value.name for value in session.get_outputs()) == result.outputs
    assert len({*result.inputs, *result.outputs}) == 6
    given = feeds(result, example, batch=5)
    given["q"] = given["q"] + 1
    found = session.run(None, given)
    for place, name in ((1, "q"), (2, "p"), (3, "q")):
        np.testing.assert_array_equal(found[place], given[name])


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (decide_on_values, r"cannot follow the model in module 'stages\.1\.?'.*`return x if x\.sum\(\) > 0"),
        (torch.linalg.eigvals, r"'aten\.linalg_eig\.default' in module 'stages\.1' has no ONNX translation"),
        (
            lambda x: torch.einsum("bij,bjk->bik", torch.fft.fft(x), torch.fft.fft(x)).real,
            r"'aten\.einsum\.default' in module 'stages\.1' has no ONNX translation for complex numbers",
        ),
        (lambda x: x + torch.rand_like(x), r"outputs differ by up to .* make it repeatable"),
    ],
    ids=["values", "operation", "complex", "random"],
)
def test_what_cannot_be_exported_is_named_and_the_file_that_was_there_stays(
    tmp_path: Path, function: Callable[[Tensor], Tensor], match: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(ExportError, match=match):
        export_onnx(Deep(Of(function)), torch.rand(2, 3, 3) + 1, path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_example_that_the_model_does_not_take_is_named_with_the_module(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \[1, 4, 8, 8\].*module 'body\.0'"):
        export_onnx(Classifier(), torch.randn(1, 4, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="must hold at least one tensor"):
        export_onnx(Classifier(), (3,), tmp_path / "model.onnx")


def test_nan_weights_are_named(tmp_path: Path) -> None:
    model = Classifier()
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(ModelError, match=r"returns NaN on the example inputs.*Look for NaN in the weights"):
        export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")


def test_weights_in_a_second_file_are_found_after_the_rename(tmp_path: Path) -> None:
    model = Deep(nn.Linear(64, 64))
    captured = Subject(model).capture(torch.rand(2, 64), dynamic_batch=True)
    path = tmp_path / "model.onnx"
    with staged_path(path) as staged:
        save(_convert(captured, None), staged, external_above_bytes=1000)
        assert not path.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert file_bytes(path) == sum(entry.stat().st_size for entry in tmp_path.iterdir()) > 64 * 64 * 4
    x = torch.rand(3, 64)
    [got] = open_session(path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(got, model(x).detach(), atol=1e-5)


def test_a_quantised_file_without_its_long_names_computes_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scale, zero, weight = np.float32(0.1), np.int8(0), rng.integers(-9, 9, (3, 4)).astype(np.int8)
    nodes = [
        onnx.helper.make_node(
            "DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero"], [f"{name}_real"]
        )
        for name in ("first.weight", "second.weight")
    ]
    nodes += [
        onnx.helper.make_node("MatMul", ["x", "first.weight_real"], ["inner"], name="node"),
        onnx.helper.make_node("MatMul", ["x", "second.weight_real"], ["outer"]),
        onnx.helper.make_node("Sub", ["inner", "outer"], ["output"]),
    ]
    tensors = []
    for name, sign in (("first.weight", 1), ("second.weight", -1)):
        tensors += [
            onnx.numpy_helper.from_array(sign * weight, f"{name}_quantized"),
            onnx.numpy_helper.from_array(np.array(scale), f"{name}_scale"),
            onnx.numpy_helper.from_array(np.array(zero), f"{name}_zero"),
        ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", 1, [2, 3])],
        [value("output", 1, [2, 4])],
        tensors,
        value_info=[value("inner", 1, [2, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    x = rng.standard_normal((2, 3)).astype(np.float32)
    before = len(model.SerializeToString())
    compact(model)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.SerializeToString()) < before
    assert len(model.graph.initializer) == 4  # two weights, one scale, one zero point
    assert {"first.weight_quantized", "second.weight_quantized"} <= {t.name for t in model.graph.initializer}
    [got] = open_session(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(got, 2 * x @ (weight * scale), rtol=1e-5)


def test_a_compact_file_runs_on_the_same_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(768, 5),
    )  # fmt: skip
    images = torch.randn(16, 3, 16, 16)
    answers, kernels, sizes = [], [], []
    for name in ("compact", "wordy"):
        if name == "wordy":
            monkeypatch.setattr("sned.export.onnx.compact", lambda model: None)
        path = tmp_path / f"{name}.onnx"
        made = sned.export(
            net, images[:1], to="onnx", quantize="int8", calibration=[images], out=path, runs=0
        )
        answers.append(made.module()(images).numpy())
        options = SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        InferenceSession(path, options)
        kernels.append(
            Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
        )
        sizes.append(made.size_bytes)
    np.testing.assert_array_equal(*answers)
    assert kernels[0] == kernels[1]
    assert kernels[0]["QLinearConv"] == 3
    assert sizes[0] < 0.7 * sizes[1]


def test_half_precision_may_be_off_by_its_own_rounding(tmp_path: Path) -> None:
    result = export_onnx(Deep(nn.Linear(64, 64)).half(), torch.rand(1, 64).half(), tmp_path / "model.onnx")
    assert result.max_rel_diff < 5e-3


def test_a_tensor_that_two_ops_want_in_32_bits_is_cast_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    limits = torch.randn(1, 4)

    def between(x: Tensor) -> Tensor:
        x = x * 2 + 1
        return torch.maximum(x, limits) - torch.minimum(x, limits)

    x = torch.randn(5, 4)
    made = sned.export(Of(between), x, quantize="fp16", out=tmp_path / "m.onnx", runs=0)
    torch.testing.assert_close(made.module()(x), (x * 2 + 1 - limits).abs(), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("quantize", [None, "int8-dynamic"])
def test_an_lstm_that_projects_its_state_goes_step_by_step(tmp_path: Path, quantize: str | None) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(6, 16, 2, batch_first=True, bidirectional=True, proj_size=5).eval()
    x = torch.randn(4, 7, 6)
    made = sned.export(model, x, quantize=quantize, out=tmp_path / "m.onnx", runs=0)
    with torch.no_grad():
        steps, (hidden, cell) = model(x[:3])
    for got, wanted in zip(made.module()(x[:3]), (steps, hidden, cell), strict=True):
        assert float((got - wanted).norm() / wanted.norm()) < (1e-5 if quantize is None else 0.05)


def test_what_the_quantiser_left_alone_is_not_called_8_bits(tmp_path: Path) -> None:
    model, x = Deep(nn.GRU(4, 4, batch_first=True)), torch.rand(2, 3, 4)
    words = {"calibration": [x], "quantize": "int8", "out": tmp_path / "m.onnx", "runs": 0}
    made = sned.export(model, x, **words)
    assert "Nothing went to 8 bits: the runtime's quantiser takes no layer of this network." in made.notes
    assert made.batches == (2,)
    lstm = sned.export(Deep(nn.LSTM(4, 4, batch_first=True)), x, **words)
    assert any(
        "Nothing went to 8 bits" in note and "'int8-dynamic' takes LSTMs" in note for note in lstm.notes
    )
    dynamic = sned.export(Deep(nn.LSTM(4, 4, batch_first=True)), x, **{**words, "quantize": "int8-dynamic"})
    assert not any("Nothing" in note for note in dynamic.notes)


def test_transposed_convolutions_in_groups_stay_in_32_bits(tmp_path: Path) -> None:
    """ONNX Runtime's quantiser takes the channels of one group for all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2), nn.Conv2d(8, 3, 1)
    ).eval()
    x, unseen = torch.randn(32, 3, 8, 8), torch.randn(4, 3, 8, 8)
    words = {"quantize": "int8", "calibration": [x], "out": tmp_path / "m.onnx", "runs": 0}
    made = sned.export(model, x[:1], **words)
    with torch.no_grad():
        expected, got = model(unseen), made.module()(unseen)
    assert float((got - expected).norm() / expected.norm()) < 0.05
    weights = [tensor for tensor in onnx.load(made.path).graph.initializer if len(tensor.dims) == 4]
    kinds = {tuple(tensor.dims): tensor.data_type for tensor in weights}
    assert kinds.pop((16, 4, 4, 4)) == onnx.TensorProto.FLOAT
    assert {*kinds.values()} == {onnx.TensorProto.INT8}
