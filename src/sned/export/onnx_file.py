"""ONNX files on disk: whole or not there, also where the weights go to a second file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir

from sned.errors import ExportError
from sned.files import atomic_path

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

EXTERNAL_ABOVE_BYTES = 2_000_000_000
"""A protobuf message cannot pass 2 GiB; beyond this the weights go to `<name>.data` beside the file."""


@contextmanager
def written(
    program: "ONNXProgram", path: Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> Iterator[Path]:
    """Write and check an ONNX file under a passing name; yield that; rename it when the block ends well.

    Args:
        program: what the exporter made.
        path: where the file should end up.
        external_above_bytes: weights beyond this many bytes go to `<name>.data`.

    Raises:
        ExportError: the file is not valid ONNX.
        WriteError: the disk is full or the folder is not writable.
    """
    if _weight_bytes(program) <= external_above_bytes:
        with atomic_path(path) as beside:
            program.save(beside, external_data=False)
            _check(beside)
            yield beside
        return
    data = path.with_name(f"{path.name}.data")
    # The data is renamed first: a model file that is there always finds its weights.
    with atomic_path(path) as beside, atomic_path(data) as data_beside:
        onnx_ir.save(program.model, beside, external_data=data_beside.name)
        _check(beside)
        yield beside
        _point_to(beside, data.name)


def file_bytes(path: Path) -> int:
    """Size of an ONNX file in bytes, with that of the external data that it names."""
    model = onnx.load(path, load_external_data=False)
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in _locations(model))


def opset(path: Path) -> int:
    """Version of the standard ONNX operators that a file uses."""
    model = onnx.load(path, load_external_data=False)
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def module_of(path: Path, node_name: str) -> str:
    """The module of the PyTorch model that a node came from; empty where the file does not say.

    The exporter notes the scopes of each node as a list, "['', 'layer1', 'layer1.conv', 'convolution']".
    """
    model = onnx.load(path, load_external_data=False)
    notes = [prop.value for node in model.graph.node if node.name == node_name for prop in node.metadata_props
             if prop.key == "pkg.torch.onnx.name_scopes"]  # fmt: skip
    scopes = [scope.strip(" '\"") for scope in notes[0].strip("[]").split(",")] if notes else []
    return scopes[-2] if len(scopes) >= 2 else ""


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The exporter wrote a file that is not valid ONNX: {str(error).splitlines()[0]} "
            "This is a fault of the exporter; another `opset` may avoid it."
        ) from error


def _weight_bytes(program: "ONNXProgram") -> int:
    values = program.model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _locations(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _point_to(path: Path, data_name: str) -> None:
    """Have the file name its data as it is going to be called."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_name
    onnx.save(model, path)
