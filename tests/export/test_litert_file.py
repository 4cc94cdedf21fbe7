"""What is written into a LiteRT file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sned
from sned.export.litert_file import write

flatbuffer = pytest.importorskip(
    "ai_edge_litert.tools.flatbuffer_utils", reason="needs the extra: pip install 'sned[litert]'"
)


def test_equal_vectors_are_written_once_and_read_back_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(32, 32, 1) for _ in range(6)))
    images = torch.randn(8, 32, 6, 6)
    path, plain = tmp_path / "small.tflite", tmp_path / "plain.tflite"
    made = sned.export(net, images[:1], to="litert", quantize="int8", calibration=[images], out=path, runs=0)
    model = flatbuffer.read_model(str(path))
    flatbuffer.write_model(model, str(plain))
    points = [t.quantization.zeroPoint for t in model.subgraphs[0].tensors if t.quantization]
    zeros = sum(8 * len(point) for point in points if point is not None)
    assert made.size_bytes < plain.stat().st_size - zeros // 2

    again = tmp_path / "again.tflite"
    write(flatbuffer.read_model(str(plain)), again)
    for one, other in zip(
        model.subgraphs[0].tensors, flatbuffer.read_model(str(again)).subgraphs[0].tensors, strict=True
    ):
        assert one.name == other.name
        for field in ("scale", "zeroPoint") if one.quantization else ():
            np.testing.assert_array_equal(
                getattr(one.quantization, field), getattr(other.quantization, field)
            )
        np.testing.assert_array_equal(one.shape, other.shape)
