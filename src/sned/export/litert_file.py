"""LiteRT files as flatbuffer objects: what is in them, and means that need no transposition."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}
"""Types of weights."""


def write(model: Any, path: Path) -> None:
    """Write a model into a file, with vectors of equal numbers in it once.

    Every 8-bit channel has a zero point of 8 bytes, which is zero: in a small network they take as much as its weights.
    """
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        """Hands out the place of a vector that it wrote before."""

        def __init__(self) -> None:
            super().__init__(1024)
            self.places: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: npt.NDArray[Any]) -> int:
            key = x.dtype.str, x.tobytes()
            if key not in self.places:
                self.places[key] = super().CreateNumpyVector(x)
            return self.places[key]

    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        tensor.shape = np.asarray(tensor.shape, np.int32)
    builder = Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())


def merge_means(model: Any) -> None:
    """Let a mean over the positions of an image read the image as it lies, in place.

    The converter moves the channels of an image to the front for a mean that drops its axes. That costs a pass over
    the image, and keeps XNNPACK off its sparse kernels for every layer in front of it.
    """
    for graph in model.subgraphs:
        made = {int(place): op for op in graph.operators for place in op.outputs}
        for op in graph.operators:
            before = made.get(int(op.inputs[0])) if len(op.inputs) else None
            if called(model, op) != "MEAN" or op.builtinOptions.keepDims or before is None:
                continue
            if called(model, before) != "TRANSPOSE":
                continue
            order, axes = (_whole(model, graph.tensors[int(one.inputs[1])]) for one in (before, op))
            if order is None or axes is None:
                continue
            moved = order[axes % len(order)]
            left = [place for place in order if place not in moved]
            if left == sorted(left):  # what is left over comes in the same order
                op.inputs[0] = before.inputs[0]
                op.inputs[1] = _constant(model, graph, int(op.inputs[1]), np.sort(moved))
        used = {int(place) for op in graph.operators for place in op.inputs} | set(map(int, graph.outputs))
        graph.operators = [
            op
            for op in graph.operators
            if called(model, op) != "TRANSPOSE" or used.intersection(map(int, op.outputs))
        ]


def array(model: Any, tensor: Any) -> npt.NDArray[Any] | None:
    """The values of a dense constant of floats or bytes; None for anything else."""
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.sparsity is not None or kind(tensor.type) not in KINDS:
        return None
    raw = np.asarray(data, np.uint8).tobytes()
    return np.frombuffer(raw, KINDS[kind(tensor.type)]).reshape([int(size) for size in tensor.shape])


def called(model: Any, op: Any) -> str:
    """The kind of an operation, "CONV_2D"."""
    from ai_edge_litert import schema_py_generated as schema

    return _names(schema.BuiltinOperator)[model.operatorCodes[op.opcodeIndex].builtinCode]


def kind(number: int) -> str:
    """The name of a tensor's type, "FLOAT32"."""
    from ai_edge_litert import schema_py_generated as schema

    return _names(schema.TensorType)[number]


def text(name: Any) -> str:
    """A tensor's name without the number that keeps it apart."""
    return (name.decode() if isinstance(name, bytes) else str(name)).partition(";")[0]


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _whole(model: Any, tensor: Any) -> npt.NDArray[np.int32] | None:
    """The values of a constant of 32-bit integers."""
    data = model.buffers[tensor.buffer].data
    if data is None or kind(tensor.type) != "INT32":
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.int32)


def _constant(model: Any, graph: Any, like: int, numbers: npt.NDArray[np.int32]) -> int:
    """Add a tensor like another one with other values; its place."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(numbers.astype(np.int32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = copy.copy(graph.tensors[like])
    tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
