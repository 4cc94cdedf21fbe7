"""Core ML packages: the same program in fewer bytes."""

from __future__ import annotations

import copy
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

_PROGRAM = Path("Data/com.apple.CoreML/model.mlmodel")
_WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")

_DEBUG = "executorch_debug_handle_mapping.json"
"""What the converter leaves beside a package's manifest; no runtime reads it."""

_IN_GRAPH = 1024
"""Bytes that lie in the graph, at most: beside the other weights each piece brings a header, padding and a path."""

_ALIGNED = 64
"""Where headers and numbers of weights begin; the size of a header, too."""

_HEADER = struct.Struct("<IIQQ")
"""A mark, the type, how many bytes there are and where they begin."""


def compact(package: Path) -> None:
    """Rewrite a package so that it says each thing once.

    The converter gives every operation settings of its own, each bias and scale a place among the weights, and values
    names of PyTorch's operations, which need not be those that they became. They are numbered by kind instead.
    """
    from coremltools.proto import Model_pb2

    (package / _DEBUG).unlink(missing_ok=True)
    model = Model_pb2.Model()
    model.ParseFromString((package / _PROGRAM).read_bytes())
    functions = model.mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    if (package / _WEIGHTS).exists():
        _move([value for block in blocks for value in _stored(block)], package / _WEIGHTS)
    for function in functions:
        for block in function.block_specializations.values():
            taken = {given.name for given in function.inputs} | set(_held(block))
            _shorten(block, {}, _fresh(taken))
    (package / _PROGRAM).write_bytes(model.SerializeToString(deterministic=True))


def is_sparse(package: Path) -> bool:
    """Whether weights are stored without their zeros."""
    return b"constexpr_sparse" in (package / _PROGRAM).read_bytes()


def _stored(block: Any) -> Iterator[Any]:
    """The values of a block that lie among the weights."""
    for op in block.operations:
        given = (binding.value for argument in op.inputs.values() for binding in argument.arguments)
        yield from (value for value in (*op.attributes.values(), *given) if value.HasField("blobFileValue"))
        for inner in op.blocks:
            yield from _stored(inner)


def _held(block: Any) -> Iterator[str]:
    """Names that stay: of what leaves a block, and of what enters those inside it."""
    yield from block.outputs
    for inner in (inner for op in block.operations for inner in op.blocks):
        yield from (given.name for given in inner.inputs)
        yield from _held(inner)


def _fresh(taken: set[str]) -> Callable[[str], str]:
    """Gives "conv_0", "conv_1" and so on."""
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)

    def name(kind: str) -> str:
        return next(made for number in numbers[kind] if (made := f"{kind}_{number}") not in taken)

    return name


def _move(values: Sequence[Any], path: Path) -> None:
    """Small values go into the graph; the others close up."""
    weights, kept = path.read_bytes(), bytearray()
    places: dict[int, int] = {}
    for value in sorted(values, key=lambda value: value.blobFileValue.offset):
        place = value.blobFileValue.offset
        mark, kind, size, start = _HEADER.unpack_from(weights, place)
        if size <= _IN_GRAPH and _written(value, weights[start : start + size]):
            continue
        if place not in places:
            places[place] = _ALIGNED + len(kept)
            header = _HEADER.pack(mark, kind, size, places[place] + _ALIGNED)
            kept += header + weights[place + _HEADER.size : place + _ALIGNED] + weights[start : start + size]
            kept += bytes(-len(kept) % _ALIGNED)
        value.blobFileValue.offset = places[place]
    path.write_bytes(struct.pack("<I", len(places)) + weights[4:_ALIGNED] + kept)


def _written(value: Any, numbers: bytes) -> bool:
    """Whether a value could be written into the graph: of the types that stand there in bytes, or as floats."""
    from coremltools.proto import MIL_pb2

    kind = MIL_pb2.DataType.Name(value.type.tensorType.dataType)
    if kind not in ("FLOAT32", "FLOAT16", "INT8", "UINT8"):
        return False
    tensor = value.immediateValue.tensor
    if kind == "FLOAT32":
        tensor.floats.values.extend(np.frombuffer(numbers, "<f4").tolist())
    else:
        tensor.bytes.values = numbers
    return True


def _shorten(block: Any, instead: dict[str, str], fresh: Callable[[str], str]) -> None:
    """Equal constants of a block become one, and all that stays inside gets a short name: `instead` says which."""
    constants: dict[bytes, str] = {}
    kept = []
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name in instead:
                    binding.name = instead[binding.name]
        for inner in op.blocks:
            _shorten(inner, dict(instead), fresh)
        old, constant = [output.name for output in op.outputs], op.type.startswith("const")
        if not {*old} & {*block.outputs}:
            content = _content(op) if constant else b""
            if content in constants:
                instead[old[0]] = constants[content]
                continue
            name = fresh("c" if constant else op.type)
            if constant:
                constants[content] = name
            op.attributes["name"].immediateValue.tensor.strings.values[:] = [name]
            for place, output in enumerate(op.outputs):
                instead[output.name] = f"{name}_{place}" if place else name
                output.name = instead[output.name]
        kept.append(copy.deepcopy(op))
    block.outputs[:] = [instead.get(name, name) for name in block.outputs]
    del block.operations[:]
    block.operations.extend(kept)


def _content(op: Any) -> bytes:
    """What a constant is, whatever its name."""
    plain = copy.deepcopy(op)
    plain.outputs[0].name = ""
    plain.attributes["name"].Clear()
    return bytes(plain.SerializeToString(deterministic=True))
