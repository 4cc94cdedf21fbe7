"""LiteRT files as flatbuffer objects: what is in them, and means that need no transposition."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}
"""Types of weights."""


def write(model: Any, path: Path) -> None:
    """Write a model into a file, without what nothing reads, and with equal vectors and scales in it once.

    Every 8-bit channel has a zero point of 8 bytes, which is zero: in a small network they take as much as its weights.
    """
    import flatbuffers

    _tidy(model)

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

    scales: dict[str, int] = {}
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        tensor.shape = np.asarray(tensor.shape, np.int32)
        tensor.quantization = tensor.quantization and _Once(tensor.quantization, scales)
    builder = Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())


class _Once:
    """How a tensor is quantised, written at the place of an equal one, if there was one before."""

    def __init__(self, held: Any, places: dict[str, int]) -> None:
        self._held = held
        self._places = places

    def Pack(self, builder: Any) -> int:
        held = self._held
        numbers = [None if n is None else list(n) for n in (held.min, held.max, held.scale, held.zeroPoint)]
        if held.details is not None:
            return int(held.Pack(builder))
        key = repr((numbers, held.quantizedDimension))
        if key not in self._places:
            self._places[key] = held.Pack(builder)
        return self._places[key]


def _tidy(model: Any) -> None:
    """Have equal shapes and orders of axes once, without names; leave out what no operation reads or writes."""
    for number, graph in enumerate(model.subgraphs):
        ends = [
            entry
            for signature in model.signatureDefs or ()
            if signature.subgraphIndex == number
            for entry in (*signature.inputs, *signature.outputs)
        ]
        lists = [(op, name) for op in graph.operators for name in ("inputs", "outputs", "intermediates")]
        lists += [(graph, "inputs"), (graph, "outputs")]
        held = [(owner, name, _places(owner, name)) for owner, name in lists]
        first = _first_equal(model, graph)
        read = {first.get(place, place) for _, _, places in held for place in places}
        kept = [place for place in range(len(graph.tensors)) if place in read]
        now = {old: new for new, old in enumerate(kept)} | {-1: -1}
        graph.tensors = [graph.tensors[place] for place in kept]
        for owner, name, places in held:
            if places:
                setattr(owner, name, np.array([now[first.get(p, p)] for p in places], np.int32))
        for entry in ends:
            entry.tensorIndex = now[int(entry.tensorIndex)]
    told = {entry.buffer for entry in model.metadata or ()}
    told |= {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for place, buffer in enumerate(model.buffers):
        if place not in told:
            buffer.data = None


def _places(owner: Any, name: str) -> list[int]:
    """A list of tensors; empty where there is none."""
    places = getattr(owner, name)
    return [] if places is None else [int(place) for place in places]


def _first_equal(model: Any, graph: Any) -> dict[int, int]:
    """For constants of whole numbers the first that is equal; they lose their names."""
    seen: dict[tuple[Any, ...], int] = {}
    first = {}
    for place, tensor in enumerate(graph.tensors):
        numbers = _whole(model, tensor)
        quantised = tensor.quantization is not None and tensor.quantization.scale is not None
        if numbers is not None and not quantised:
            tensor.name = None
            first[place] = seen.setdefault((tuple(map(int, tensor.shape)), numbers.tobytes()), place)
    return first


def lay_shuffles(model: Any) -> None:
    """Let a channel shuffle mix the channels of an image as it lies, in place.

    The converter moves the channels to the front, splits and transposes them there, and moves them back: three passes
    over the image, of which one is asked for.
    """
    for graph in model.subgraphs:
        made = {int(place): op for op in graph.operators for place in op.outputs}
        uses = Counter(int(place) for op in graph.operators for place in op.inputs)
        uses.update(map(int, graph.outputs))
        gone = set()
        for op in graph.operators:
            chain = [op]
            while len(chain) < len(_SHUFFLE) and len(chain[0].inputs) and int(chain[0].inputs[0]) in made:
                chain.insert(0, made[int(chain[0].inputs[0])])
            if [called(model, one) for one in chain] != list(_SHUFFLE):
                continue
            if any(uses[int(one.outputs[0])] != 1 for one in chain[:-1]):
                continue
            front, split, swap, joined, back = chain
            orders = [_whole(model, graph.tensors[int(one.inputs[1])]) for one in (front, swap, back)]
            if [None if order is None else order.tolist() for order in orders] != _ORDERS:
                continue
            n, groups, each, height, width = (int(s) for s in graph.tensors[int(split.outputs[0])].shape)
            ends = [graph.tensors[int(place)].shape for place in (front.inputs[0], back.outputs[0])]
            if any([int(size) for size in shape] != [n, height, width, groups * each] for shape in ends):
                continue  # what was split is not the channels
            _reshape(model, graph, split, (n, height, width, groups, each))
            swap.inputs[1] = _constant(model, graph, int(swap.inputs[1]), np.array([0, 1, 2, 4, 3]))
            graph.tensors[int(swap.outputs[0])].shape = np.array([n, height, width, each, groups], np.int32)
            _reshape(model, graph, joined, (n, height, width, groups * each))
            split.inputs[0], joined.outputs[0] = front.inputs[0], back.outputs[0]
            gone |= {id(front), id(back)}
        graph.operators = [op for op in graph.operators if id(op) not in gone]


_SHUFFLE = ("TRANSPOSE", "RESHAPE", "TRANSPOSE", "RESHAPE", "TRANSPOSE")
_ORDERS = [[0, 3, 1, 2], [0, 2, 1, 3, 4], [0, 2, 3, 1]]


def _reshape(model: Any, graph: Any, op: Any, shape: tuple[int, ...]) -> None:
    """Let a reshape give another shape."""
    op.inputs[1] = _constant(model, graph, int(op.inputs[1]), np.array(shape))
    graph.tensors[int(op.inputs[1])].shape = np.array([len(shape)], np.int32)
    graph.tensors[int(op.outputs[0])].shape = np.array(shape, np.int32)
    if op.builtinOptions is not None:
        op.builtinOptions.newShape = np.array(shape, np.int32)


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
