"""Core ML packages in fewer bytes: what they compute, and what lies where."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sned

pytest.importorskip("coremltools")

from sned.export.coreml_file import compact
from sned.export.mil import Program


def _operations(path: Path) -> list[Any]:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return list(_all(block))


def _all(block: Any) -> Iterator[Any]:
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from _all(inner)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "words",
    [{}, {"quantize": "fp16"}, {"quantize": "int8"}, {"sparse": True}, {"sparse": True, "quantize": "int8"}],
)
def test_a_package_computes_the_same_in_fewer_bytes(
    tmp_path: Path, words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.export.coreml.compact", lambda path: None)
    model = nn.Sequential(
        *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)), nn.Flatten(), nn.Linear(256, 9)
    )
    for weight in (weight for weight in model.parameters() if weight.dim() > 1):
        weight.data[torch.rand_like(weight) < 0.7] = 0
    x = torch.randn(2, 16, 4, 4)
    plain, packed = tmp_path / "plain.mlpackage", tmp_path / "packed.mlpackage"
    sned.export(model.eval(), x, to="coreml", out=plain, runs=0, **words)
    shutil.copytree(plain, packed)
    compact(packed)
    for got, own in zip(*(Program(path, "main").run([x.numpy()]) for path in (packed, plain)), strict=True):
        np.testing.assert_array_equal(got, own)
    assert _size(packed) < _size(plain) - 1500
    compact(once := shutil.copytree(packed, tmp_path / "again.mlpackage"))
    assert _size(once) == _size(packed)


def test_equal_constants_are_written_once(tmp_path: Path) -> None:
    convolutions = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
    x = torch.randn(1, 4, 8, 8)
    exported = sned.export(
        nn.Sequential(*convolutions).eval(), x, to="coreml", out=tmp_path / "m.mlpackage", runs=0
    )
    assert exported.max_abs_diff < 1e-4
    operations = _operations(tmp_path / "m.mlpackage")
    constants = [
        op.attributes["val"].SerializeToString(deterministic=True) for op in operations if op.type == "const"
    ]
    assert len(set(constants)) == len(constants)
    assert len([op for op in operations if op.type == "conv"]) == 3


def test_small_numbers_lie_in_the_graph_and_large_ones_beside_it(tmp_path: Path) -> None:
    model, path = (
        nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 5)).eval(),
        tmp_path / "m.mlpackage",
    )
    sned.export(model, torch.randn(1, 32), to="coreml", out=path, runs=0)
    values = {
        tuple(d.constant.size for d in value.type.tensorType.dimensions): value.WhichOneof("value")
        for op in _operations(path)
        for name, value in op.attributes.items()
        if name == "val"
    }
    assert values[40, 32] == "blobFileValue"
    assert values[40,] == values[5,] == values[5, 40] == "immediateValue"
    assert (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size == 64 + 64 + 40 * 32 * 4


def test_names_inside_branches_stay_those_of_something(tmp_path: Path) -> None:
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import Builder as mb

    shared = np.arange(12, dtype=np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(12,))])  # type: ignore[untyped-decorator]
    def c_0(x: Any) -> Any:
        ahead = mb.add(x=x, y=shared)
        chosen = mb.greater(x=mb.reduce_sum(x=ahead), y=1.0)
        return mb.cond(
            pred=chosen, _true_fn=lambda: mb.mul(x=ahead, y=shared), _false_fn=lambda: mb.identity(x=ahead)
        )

    path = tmp_path / "m.mlpackage"
    coremltools.convert(c_0, convert_to="mlprogram", skip_model_load=True).save(str(path))
    kinds = [op.type for op in _operations(path) if op.type != "const"]
    compact(path)
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir
    )  # or KeyError
    assert [op.type for op in _operations(path) if op.type != "const"] == kinds
    names = [output.name for op in _operations(path) for output in op.outputs]
    assert len(set(names)) == len(names)
