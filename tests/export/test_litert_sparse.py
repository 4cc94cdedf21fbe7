"""Sparse tensors of LiteRT files, and the linter; the form alone needs no LiteRT."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sned
from sned.export.litert_sparse import Coded, coded, findings


def unpacked(packed: Coded, shape: tuple[int, ...]) -> np.ndarray:
    """Row by row."""
    dense = np.zeros((int(np.prod(shape[:-1])), shape[-1]), packed.values.dtype)
    for row in range(len(dense)):
        for entry in range(int(packed.segments[row]), int(packed.segments[row + 1])):
            dense[row, packed.indices[entry]] = packed.values[entry]
    return dense.reshape(shape)


@pytest.mark.parametrize("shape", [(40, 30), (16, 1, 1, 300), (3, 1, 1, 70000)])
def test_the_sparse_form_holds_the_same_weights(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal(shape) * (rng.random(shape) > 0.9)).astype(np.float32)
    packed = coded(weight)
    assert packed is not None
    np.testing.assert_array_equal(unpacked(packed, shape), weight)
    assert packed.indices.dtype == (
        np.uint8 if shape[-1] <= 256 else np.uint16 if shape[-1] <= 65536 else np.int32
    )


def test_what_would_not_get_smaller_stays_dense() -> None:
    assert coded(np.ones((10, 10), np.float32)) is None
    half = np.tile(np.array([1, 0], np.int8), (10, 5))
    assert coded(half) is None  # an index takes as much as the zero that it spares


class Net(nn.Module):
    def __init__(self, *, pointwise: float, head: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 64, 1), nn.ReLU())
        self.head = nn.Linear(64, 40)
        for layer, sparsity in ((self.wide[0], pointwise), (self.head, head)):
            layer.weight.data *= torch.rand(layer.weight.shape) > sparsity

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.stem(x)).mean((2, 3)))


def lint(model: nn.Module, path: Path, **words: Any) -> dict[str, str]:
    pytest.importorskip("litert_torch")
    from ai_edge_litert.tools import flatbuffer_utils

    x = torch.randn(1, 3, 16, 16)
    sned.export(
        model, x, to="litert", out=path, sparse=True, runs=0, calibration=[torch.randn(8, 3, 16, 16)], **words
    )
    return {finding.rule: finding.where for finding in findings(flatbuffer_utils.read_model(str(path)))}


def test_a_file_that_is_sparse_throughout_has_nothing_to_find(tmp_path: Path) -> None:
    assert lint(Net(pointwise=0.9, head=0.9), tmp_path / "m.tflite") == {}


def test_a_dense_head_counts_against_the_two_thirds(tmp_path: Path) -> None:
    assert lint(Net(pointwise=0.9, head=0.0), tmp_path / "m.tflite") == {"two thirds": "head"}


def test_int8_and_images_with_channels_first_are_found(tmp_path: Path) -> None:
    model = Net(pointwise=0.9, head=0.9)
    assert "int8" in lint(model, tmp_path / "a.tflite", quantize="int8")
    assert "layout" in lint(model, tmp_path / "b.tflite", channels_last=False)


def test_weights_that_floats_meet_in_8_bits_stay_dense(tmp_path: Path) -> None:
    """XNNPACK fails to open the file otherwise, which an export does."""
    found = lint(Net(pointwise=0.9, head=0.9), tmp_path / "m.tflite", quantize="int8-dynamic")
    assert "int8" in found


def test_findings_name_modules(tmp_path: Path) -> None:
    model = Net(pointwise=0.9, head=0.9)
    assert lint(model, tmp_path / "m.tflite", quantize="int8")["int8"].startswith("wide.0")
    assert "_sparse" not in lint(model, tmp_path / "m.tflite", quantize="int8")["int8"]


class Turned(Net):
    """Averages over the channels too, which LiteRT does with the channels in front."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.stem(x))
        return self.head((x + x.flatten(1).cumsum(1).reshape(x.shape)).mean((2, 3)))


def test_a_mean_needs_no_transposition_and_another_one_is_found(tmp_path: Path) -> None:
    assert "transpose" not in lint(Net(pointwise=0.9, head=0.9), tmp_path / "a.tflite", quantize="int8")
    assert "transpose" in lint(Turned(pointwise=0.9, head=0.9), tmp_path / "b.tflite")
