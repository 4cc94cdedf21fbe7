"""Sparse weights in a LiteRT file, and what keeps XNNPACK from multiplying without the zeros.

The file is rewritten as a flatbuffer: a weight gets `SparsityParameters` and a DENSIFY operation in front of its
consumer, which XNNPACK takes away again where it has a sparse kernel. No TensorFlow is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sned.export.litert_file import KINDS, array, called, kind, text

SHARE = 2 / 3
"""Share of zeros, over all weights of 1×1 convolutions and linear layers together, from which XNNPACK goes sparse."""


@dataclass(frozen=True)
class Packed:
    """A weight that is stored sparse: its name, its share of zeros, and its bytes before and after."""

    name: str
    sparsity: float
    before: int
    after: int


@dataclass(frozen=True)
class Finding:
    """One thing that keeps XNNPACK off its sparse kernels; `stops` where all of the file is kept off."""

    rule: str
    where: str
    text: str
    stops: bool

    def __str__(self) -> str:
        return self.text


def sparsify(model: Any) -> tuple[Packed, ...]:
    """Store the weights of 1×1 convolutions and linear layers sparse where that is smaller, in place.

    Args:
        model: `ModelT` of a `.tflite`, as `flatbuffer_utils.read_model` gives it.
    """
    packed: list[Packed] = []
    densify: int | None = None
    for graph in model.subgraphs:
        operators: list[Any] = []
        done: dict[int, int] = {}
        for op in graph.operators:
            place = _weight_of(model, graph, op)
            weight = None if place is None else array(model, graph.tensors[place])
            if place is not None and place in done:
                op.inputs[1] = done[place]
            elif place is not None and weight is not None and (packing := coded(weight)) is not None:
                tensor = graph.tensors[place]
                name = text(tensor.name)
                densify = _opcode(model) if densify is None else densify
                op.inputs[1] = done[place] = _insert(model, graph, operators, place, packing, densify)
                packed.append(Packed(name, float((weight == 0).mean()), weight.nbytes, packing.nbytes))
                users = sum(
                    other.buffer == tensor.buffer for part in model.subgraphs for other in part.tensors
                )
                if users == 1:
                    model.buffers[tensor.buffer].data = None
            operators.append(op)
        graph.operators = operators
    return tuple(packed)


def findings(model: Any) -> tuple[Finding, ...]:
    """What keeps XNNPACK off its sparse kernels in this file, the gravest first.

    The rules are those of XNNPACK's delegate as they were met: at least two thirds of all weights of 1×1 convolutions
    and linear layers must be zero, counted together with a head that is not sparse; only 32-bit floats have sparse
    kernels; a sparse 1×1 convolution must not stand right behind a mean that keeps its axes; images must enter with
    their channels last, and keep them there.
    """
    found = [*_share(model), *_types(model), *_means(model), *_transposed(model)]
    return tuple(sorted(found, key=lambda finding: not finding.stops))


def _share(model: Any) -> Iterator[Finding]:
    counted = [(name, zeros, size) for _, _, name, zeros, size in _weights(model)]
    size = sum(size for *_, size in counted)
    zeros = sum(zeros for _, zeros, _ in counted)
    if size and zeros < SHARE * size:
        worst = max(counted, key=lambda entry: entry[2] - entry[1])
        yield Finding(
            "two thirds", worst[0],
            f"XNNPACK goes sparse only where two thirds of all weights of 1×1 convolutions and linear layers are zero; "
            f"here {zeros / size:.0%} are. The most that are not lie in '{worst[0]}' ({worst[2] - worst[1]:,}): "
            "thin that too, a head among them.",
            True,
        )  # fmt: skip


def _types(model: Any) -> Iterator[Finding]:
    for graph, op, name, zeros, size in _weights(model):
        stored = kind(graph.tensors[_source(model, graph, int(op.inputs[1]))].type)
        if stored == "INT8" and zeros >= SHARE * size:
            yield Finding(
                "int8", name,
                "XNNPACK has sparse kernels for 32-bit floats only: sparse int8 weights are smaller in the file, and "
                "filled in when it is opened.",
                True,
            )  # fmt: skip
            return


def _means(model: Any) -> Iterator[Finding]:
    for graph, op, name, _, _ in _weights(model):
        producer = next(
            (other for other in graph.operators if int(op.inputs[0]) in map(int, other.outputs)), None
        )
        sparse = _source(model, graph, int(op.inputs[1])) != int(op.inputs[1])
        if producer is None or not sparse or called(model, producer) != "MEAN":
            continue
        if called(model, op) == "CONV_2D" and getattr(producer.builtinOptions, "keepDims", False):
            yield Finding(
                "mean", name,
                f"The sparse 1×1 convolution '{name}' stands right behind a mean that keeps its axes, which XNNPACK "
                "refuses when the file is opened. Average without keeping them and use a linear layer.",
                True,
            )  # fmt: skip


def _transposed(model: Any) -> Iterator[Finding]:
    for graph in model.subgraphs:
        entering = set(map(int, graph.inputs))
        for op in graph.operators:
            source = graph.tensors[int(op.inputs[0])] if len(op.inputs) else None
            if called(model, op) != "TRANSPOSE" or source is None or len(source.shape) != 4:
                continue
            where = text(source.name)
            if int(op.inputs[0]) in entering:
                yield Finding(
                    "layout", where,
                    "Images enter with their channels first and are transposed: export with `channels_last`, so that "
                    "the sparse kernels can follow the first convolution.",
                    False,
                )  # fmt: skip
            else:
                yield Finding(
                    "transpose", where,
                    f"What '{where}' gives is transposed for an operation that wants its channels first: XNNPACK then "
                    "keeps dense kernels for all that is joined to it. Write that operation without moving axes.",
                    True,
                )  # fmt: skip


def _weights(model: Any) -> Iterator[tuple[Any, Any, str, int, int]]:
    """Graph, operator, name, zeros and size of each weight of a 1×1 convolution or a linear layer."""
    for graph in model.subgraphs:
        for op in graph.operators:
            if called(model, op) not in ("CONV_2D", "FULLY_CONNECTED") or len(op.inputs) < 2:
                continue
            place = _source(model, graph, int(op.inputs[1]))
            tensor = graph.tensors[place]
            shape = [int(size) for size in tensor.shape]
            if called(model, op) == "CONV_2D" and shape[1:3] != [1, 1]:
                continue
            data = model.buffers[tensor.buffer].data
            if data is None or kind(tensor.type) not in KINDS:
                continue
            size, kept = int(np.prod(shape)), array(model, tensor)
            stored = np.frombuffer(np.asarray(data, np.uint8).tobytes(), KINDS[kind(tensor.type)])
            filled = int(np.count_nonzero(stored if kept is None else kept))
            yield graph, op, text(graph.tensors[int(op.inputs[1])].name), size - filled, size


def _source(model: Any, graph: Any, place: int) -> int:
    """The tensor that a DENSIFY in front of a consumer unpacks, or the tensor itself."""
    for op in graph.operators:
        if called(model, op) == "DENSIFY" and int(op.outputs[0]) == place:
            return int(op.inputs[0])
    return place


@dataclass(frozen=True)
class Coded:
    """Rows of a weight with their zeros left out (CSR over all axes but the last)."""

    values: npt.NDArray[Any]
    segments: npt.NDArray[Any]
    indices: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.values.nbytes + self.segments.nbytes + self.indices.nbytes


def coded(weight: npt.NDArray[Any]) -> Coded | None:
    """The sparse form, or None where that is no smaller."""
    rows = weight.reshape(-1, weight.shape[-1])
    filled = rows != 0
    segments = np.concatenate([[0], np.cumsum(filled.sum(1))])
    packed = Coded(rows[filled], _narrowed(segments), _narrowed(np.nonzero(filled)[1]))
    return packed if packed.nbytes < weight.nbytes else None


def _narrowed(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    highest = int(numbers.max(initial=0))
    return numbers.astype(np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32)


def _insert(model: Any, graph: Any, operators: list[Any], place: int, coded: Coded, densify: int) -> int:
    """Add the sparse tensor, the tensor that it is unpacked to, and the operation between; the latter's place."""
    from ai_edge_litert import schema_py_generated as schema

    tensor = graph.tensors[place]
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(coded.values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    sparse, dense = copy.copy(tensor), copy.copy(tensor)
    sparse.buffer, dense.buffer = len(model.buffers) - 1, 0
    sparse.name = f"{text(tensor.name)}_sparse"
    sparse.sparsity = _parameters(schema, [int(size) for size in tensor.shape], coded)
    graph.tensors.extend([sparse, dense])
    op = schema.OperatorT()
    op.opcodeIndex = densify
    op.inputs = np.array([len(graph.tensors) - 2], np.int32)
    op.outputs = np.array([len(graph.tensors) - 1], np.int32)
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.DensifyOptions, schema.DensifyOptionsT()
    operators.append(op)
    return len(graph.tensors) - 1


def _parameters(schema: Any, shape: list[int], coded: Coded) -> Any:
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder = np.arange(len(shape), dtype=np.int32)
    parameters.blockMap = np.array([], np.int32)
    parameters.dimMetadata = []
    for size in shape[:-1]:
        axis = schema.DimensionMetadataT()
        axis.format, axis.denseSize = schema.DimensionType.DENSE, size
        parameters.dimMetadata.append(axis)
    last = schema.DimensionMetadataT()
    last.format, last.denseSize = schema.DimensionType.SPARSE_CSR, 0
    last.arraySegmentsType, last.arraySegments = _vector(schema, coded.segments)
    last.arrayIndicesType, last.arrayIndices = _vector(schema, coded.indices)
    parameters.dimMetadata.append(last)
    return parameters


def _vector(schema: Any, numbers: npt.NDArray[Any]) -> tuple[Any, Any]:
    name = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[numbers.itemsize]
    vector = getattr(schema, f"{name}T")()
    vector.values = numbers
    return getattr(schema.SparseIndexVector, name), vector


def _weight_of(model: Any, graph: Any, op: Any) -> int | None:
    """The place of the weight of a 1×1 convolution or a linear layer that is not sparse yet."""
    if called(model, op) not in ("CONV_2D", "FULLY_CONNECTED") or len(op.inputs) < 2:
        return None
    entering, place = int(op.inputs[0]), int(op.inputs[1])
    tensor = graph.tensors[place]
    linear = called(model, op) == "FULLY_CONNECTED"
    # XNNPACK takes a sparse int8 weight of a linear layer, or of floats that enter, and then fails to prepare it.
    if kind(tensor.type) == "INT8" and (linear or kind(graph.tensors[entering].type) != "INT8"):
        return None
    return place if linear or [int(size) for size in tensor.shape][1:3] == [1, 1] else None


def _opcode(model: Any) -> int:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DENSIFY
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
