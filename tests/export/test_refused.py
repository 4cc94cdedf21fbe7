"""What an export refuses, and that nothing is left of it."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import ExportError, UserError, WriteError
from sned.export import TARGETS, export_levels, find_target
from sned.export.target import DYNAMIC
from tests.export.networks import Encoder, Of, convolutional, images
from tests.export.runtimes import SHARING, available


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_that_disagrees_is_not_kept(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    available(to)
    target = find_target(to)

    def wrong(path: Path, level: str, threads: int) -> Any:
        session = target.read(path, level, threads)
        return SimpleNamespace(run=lambda inputs: [np.asarray(a) * 1.01 for a in session.run(inputs)])

    monkeypatch.setattr("sned.export.road.find_target", lambda name: _replaced(target, read=wrong))
    with pytest.raises(ExportError, match=r"does not compute what the model computes.*The file was not kept"):
        sned.export(convolutional(), images(1), to=to, out=tmp_path / f"model{target.suffix}")
    assert list(tmp_path.iterdir()) == []


def _replaced(target: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(target, **changes)


class Deep(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Linear(4, 4), Of(function))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


@pytest.mark.parametrize("to", TARGETS)
def test_an_operation_that_the_converter_lacks_is_named_with_its_module(tmp_path: Path, to: str) -> None:
    available(to)
    path = tmp_path / f"model{find_target(to).suffix}"
    with pytest.raises(
        ExportError, match=r"(linalg_eig|view_as_real).*in module 'stages\.1'.*Replace that operation"
    ):
        sned.export(Deep(lambda x: torch.linalg.eigvals(x).real), torch.rand(2, 4, 4), to=to, out=path)
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_the_runtime_lacks_is_named_with_its_module(tmp_path: Path) -> None:
    available("litert")
    with pytest.raises(ExportError, match=r"no kernel for STABLEHLO_SORT in module 'stages\.1'\. Replace"):
        sned.export(
            Deep(lambda x: x.topk(2).values), torch.rand(2, 4), to="litert", out=tmp_path / "m.tflite"
        )


def test_the_convolution_that_is_meant_is_named_and_not_the_first(tmp_path: Path) -> None:
    available("litert")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=4))
    with pytest.raises(ExportError, match=r"'aten\.convolution\.default' in module '2' has no LiteRT"):
        sned.export(model.eval(), torch.rand(1, 3, 8, 8), to="litert", out=tmp_path / "m.tflite")


def test_core_ml_takes_no_bytes(tmp_path: Path) -> None:
    available("coreml")
    pixels = torch.ones(2, 4, dtype=torch.uint8)
    with pytest.raises(ExportError, match=r"take no inputs of type uint8\. Let the model take float32"):
        sned.export(Of(lambda x: x.float() / 255), pixels, to="coreml", out=tmp_path / "m.mlpackage")


@pytest.mark.parametrize("to", sorted({*TARGETS} - {*SHARING}))
def test_a_runtime_that_cannot_share_weights_says_so(tmp_path: Path, to: str) -> None:
    models = {"a": convolutional(), "b": convolutional(1)}
    with pytest.raises(UserError, match=r"cannot hold several networks.*executorch"):
        export_levels(models, images(1), to=to, out=tmp_path / f"model{find_target(to).suffix}")


@pytest.mark.parametrize("to", [name for name in TARGETS if find_target(name).extra])
def test_a_missing_extra_is_named_with_its_install_line(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sned.export.target.find_spec",
        lambda module: None if module in find_target(to).modules else find_spec(module),
    )
    with pytest.raises(ExportError, match=re.escape(f"pip install 'sned[{to}]'")):
        sned.export(convolutional(), images(1), to=to, out=tmp_path / f"m{find_target(to).suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", TARGETS)
def test_an_export_folder_that_cannot_be_written_is_told(tmp_path: Path, to: str) -> None:
    available(to)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="a file stands where one of its folders should be"):
        sned.export(
            convolutional(), images(1), to=to, out=tmp_path / "file" / f"model{find_target(to).suffix}"
        )


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"to": "tflite"}, r"must be one of onnx, coreml, litert.*got 'tflite'"),
        ({"quantize": "int4"}, r"must be one of fp16, int8, int8-dynamic for ONNX Runtime, got 'int4'"),
        ({"to": "coreml", "quantize": DYNAMIC}, r"must be one of fp16, int8 for Core ML, got 'int8-dynamic'"),
        ({"to": None}, r"`to` must be one of onnx, coreml.*got None"),
        ({"out": ""}, r"`out` must name a file, got ''\. Write to 'NAME\.onnx'"),
        ({"out": "/"}, "must name a file, got '/'"),
        ({"model": Encoder}, r"must be a module of PyTorch or a Keras model, got the class Encoder\. Build"),
        ({"model": "model.pt"}, "or a Keras model, got str"),
        ({"model": None}, "or a Keras model, got NoneType"),
        ({"example_inputs": images(1)[:0]}, "at least one row, got a batch of 0"),
        ({"example_inputs": images(1).bfloat16()}, r"no inputs in bfloat16.*Export `model\.float\(\)`"),
        ({"tolerance": -1.0}, r"`tolerance` must be 0 or more, or None for the default, got -1\.0"),
        ({"tolerance": float("nan")}, "must be 0 or more.*got nan"),
        ({"runs": -1}, r"`runs` must be 0 or more, got -1\."),
        ({"threads": 0}, r"`threads` must be 1 or more, got 0\."),
        ({"system": "iOS17"}, r"`system` is for coreml, and ONNX Runtime has none\. Leave it out"),
        ({"channels_last": False}, r"`channels_last` is for litert, and ONNX Runtime has none"),
        ({"to": "coreml", "out": "m.mlpackage", "opset": 20}, "`opset` is for onnx, and Core ML has none"),
        ({"opset": 9}, r"`opset` must be a version that .* can write, got 9: it wrote 18 instead"),
        ({"opset": 99}, r"`opset` must be a version that .* can write, got 99: it wrote 18 instead"),
        ({"out": "model.tflite"}, r"called `NAME\.onnx`, got '.*model\.tflite'. Write to '.*model\.onnx'"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, words: dict[str, Any], match: str) -> None:
    asked = {
        "model": convolutional(),
        "example_inputs": images(1),
        "to": "onnx",
        "out": "model.onnx",
        **words,
    }
    with pytest.raises(UserError, match=match):
        sned.export(**{**asked, "out": tmp_path / asked["out"] if asked["out"] else asked["out"]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("models", "match"),
    [
        ([convolutional()], r"must be a mapping of names to networks, got list\. Give \{'fast'"),
        ({1: convolutional(), 2: convolutional()}, r"names of letters, digits and underscores, got 1\."),
        ({}, "at least one network, got none"),
    ],
)
def test_levels_have_names(tmp_path: Path, models: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        export_levels(models, images(1), to="litert", out=tmp_path / "model.tflite")


def test_a_measure_that_fails_is_found_before_anything_is_written(tmp_path: Path) -> None:
    def accuracy(model: nn.Module) -> float:
        raise KeyError("labels")

    with pytest.raises(UserError, match="`evaluate` failed with KeyError: 'labels'"):
        sned.export(convolutional(), images(1), out=tmp_path / "model.onnx", evaluate=accuracy)
    assert list(tmp_path.iterdir()) == []
