"""ONNX files on disk, also where the weights go to a second file."""

from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir

from sned.errors import ExportError

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

EXTERNAL_ABOVE_BYTES = 2_000_000_000
"""A protobuf message cannot pass 2 GiB; beyond this the weights go to `<name>.data` beside the file."""

_SCOPES = "pkg.torch.onnx.name_scopes"


def save(program: "ONNXProgram", path: Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write and check an ONNX file, without the exporter's notes: they quote the sources and name their folders.

    Args:
        program: what the exporter made.
        path: where.
        external_above_bytes: weights beyond this many bytes go to `<name>.data` beside it.

    Raises:
        ExportError: the file is not valid ONNX.
    """
    for node in program.model.graph.all_nodes():
        scopes = node.metadata_props.get(_SCOPES)
        node.metadata_props.clear()
        if scopes is not None:  # for `module_of`
            node.metadata_props[_SCOPES] = scopes
    program.model.graph.metadata_props.clear()
    if _weight_bytes(program) <= external_above_bytes:
        program.save(path, external_data=False)
    else:
        onnx_ir.save(program.model, path, external_data=f"{path.name}.data")
    check(path)


def set_apart(model: onnx.ModelProto) -> None:
    """Give each node that reads a weight one of its own, in place; `compact` makes one of them again.

    The quantiser transposes weights where they lie, each time that a product reads them the other way round, and
    keeps one scale a channel of one axis.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) > 1}
    read: Counter[str] = Counter()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            read[name] += 1
            if name in weights and read[name] > 1:
                own = model.graph.initializer.add()
                own.CopyFrom(weights[name])
                own.name = node.input[place] = f"{name}_{read[name]}_of_several"


def compact(model: onnx.ModelProto) -> None:
    """Leave out what a quantised file says beside its numbers, in place.

    The quantisers write names of a hundred letters, and scales and zero points that are the same many times over:
    together as much as the weights of a small network. Inputs, outputs and weights keep their names; equal weights are
    kept once.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a branch sees the names around it
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept = {value.name for value in (*graph.input, *graph.output)}
    for tensor in list(graph.initializer):
        if tensor.name in kept:
            continue
        numbers = sha256(onnx.numpy_helper.to_array(tensor).tobytes()).digest()
        same = first.setdefault((tensor.data_type, tuple(tensor.dims), numbers), tensor.name)
        if same != tensor.name:
            renamed[tensor.name] = same
            graph.initializer.remove(tensor)
        elif len(tensor.dims) > 1:
            kept.add(tensor.name)
    zeros = {tensor.name for tensor in graph.initializer if not onnx.numpy_helper.to_array(tensor).any()}
    weights = {name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not weights.issuperset(node.output):
            continue
        if {renamed.get(name, name) for name in node.input[2:]} <= zeros:
            del node.input[2:]  # which means zero; ONNX Runtime's other 8-bit kernels want it said
    used = {renamed.get(name, name) for node in graph.node for name in node.input} | kept
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    short: dict[str, str] = {"": ""} | {name: name for name in kept}

    def shortened(name: str) -> str:
        name = renamed.get(name, name)
        return short.setdefault(name, f"v{len(short):x}")

    for tensor in graph.initializer:
        tensor.name = shortened(tensor.name)
    for node in graph.node:
        node.input[:] = [shortened(name) for name in node.input]
        node.output[:] = [shortened(name) for name in node.output]
        node.ClearField("name")
        del node.metadata_props[:]
        for attribute in [attribute for attribute in node.attribute if _implied(node.op_type, attribute)]:
            node.attribute.remove(attribute)
    del graph.value_info[:], graph.metadata_props[:]


def _implied(operator: str, attribute: onnx.AttributeProto) -> bool:
    """Whether a convolution or a quantiser says what holds without its saying so."""
    value: Any = onnx.helper.get_attribute_value(attribute)
    if operator in ("QuantizeLinear", "DequantizeLinear"):
        return attribute.name == "axis" and bool(value == 1)
    if operator != "Conv":
        return False
    if attribute.name in _IMPLIED_NUMBERS:
        return all(number == _IMPLIED_NUMBERS[attribute.name] for number in value)
    unless = {"group": value == 1, "auto_pad": value == b"NOTSET", "kernel_shape": True}
    return bool(unless.get(attribute.name, False))


_IMPLIED_NUMBERS = {"pads": 0, "strides": 1, "dilations": 1}
"""What holds along every axis of a convolution unless it is said; its kernel is as large as its weights."""


def sparse_initializers(model: onnx.ModelProto) -> int:
    """Keep the weights that get smaller for it as values and places, in place; returns the bytes saved.

    A place takes 8 bytes, so that 32-bit floats gain from two thirds of zeros on, and 8-bit integers from nine tenths.
    """
    saved = 0
    for tensor in list(model.graph.initializer):
        dense = onnx.numpy_helper.to_array(tensor)
        places = np.flatnonzero(dense)
        gain = dense.nbytes - len(places) * (dense.itemsize + 8)
        if dense.ndim < 2 or gain <= 0:
            continue
        values = onnx.numpy_helper.from_array(dense.reshape(-1)[places], tensor.name)
        index = onnx.numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_places")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, index, dense.shape))
        model.graph.initializer.remove(tensor)
        saved += gain
    return saved


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
             if prop.key == _SCOPES]  # fmt: skip
    scopes = [scope.strip(" '\"") for scope in notes[0].strip("[]").split(",")] if notes else []
    return scopes[-2] if len(scopes) >= 2 else ""


def check(path: Path, *, shapes: bool = True) -> None:
    """Raise `ExportError` where a file is not valid ONNX; `shapes` too, which the checker cannot where it is sparse."""
    try:
        onnx.checker.check_model(str(path), full_check=shapes)
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
