"""The ops that are timed one by one: for each the widths to measure, and an ONNX model that runs nothing
else.

Blocked kernels are written down as such, in the runtime's own operators, so that no reorder is timed with
them; the transformer that would make plain ones blocked is off while plain ones are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sned.devices.grids import (
    SET,
    Coordinates,
    Grid,
    Point,
    as_they_are,
    blocked_channels,
    blocked_coordinates,
    blocked_widths,
    conv_coordinates,
    conv_grid,
    conv_widths,
    each,
    grouped_coordinates,
    grouped_grid,
    grouped_widths,
    plain_conv_grid,
    reorder_coordinates,
    reorder_grid,
    reorder_widths,
)
from sned.devices.layout import ALIGNMENT, Family

BLOCKED = "com.microsoft.nchwc"
CONTRIB = "com.microsoft"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How one kind of op is measured.

    Attributes:
        grid: `(family, low, high, block, density) -> ` coordinates to measure on each axis, where low and
            high are the widths that occur.
        coordinates: `(widths, block) -> ` the coordinates on the axes of the grid, which are fewer where
            widths are rounded up to blocks.
        model: `(family, point, block) -> ` an ONNX model of the op at one point of the grid.
        widths: `(coordinates, block) -> ` the largest widths that have these coordinates.
    """

    grid: Grid
    coordinates: Coordinates
    model: Callable[[Family, Point, int], ModelProto]
    widths: Coordinates = as_they_are


def constant(name: str, shape: Shape, value: float = 0.01) -> TensorProto:
    """A weight of small equal numbers: kernels take the same time for any, as long as none is denormal.

    One of another name has other numbers: a runtime holds equal weights once.
    """
    return numpy_helper.from_array(np.full(shape, value, np.float32) * _apart(name), name)


def _apart(name: str) -> np.float32:
    """A factor near one."""
    return np.float32(1 + crc32(name.encode()) % 2**16 / 2**20)


def model_of(
    nodes: Sequence[NodeProto], inputs: Mapping[str, Shape], output: str, weights: Sequence[TensorProto] = ()
) -> ModelProto:
    """A model of `nodes` with float32 inputs of the given shapes."""
    graph: GraphProto = helper.make_graph(
        nodes,
        "op",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(weights),
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1), helper.make_opsetid(BLOCKED, 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=10)


def chained(models: Sequence[ModelProto]) -> ModelProto:
    """One model that runs models of one op after each other, each on what the last one made."""
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    for place, model in enumerate(models):
        node = NodeProto()
        node.CopyFrom(model.graph.node[0])
        own = {name: f"{name}{place}" for name in node.input} | {"x": f"t{place}"}
        node.input[:] = [own[name] for name in node.input]
        node.output[:] = [f"t{place + 1}"]
        nodes.append(node)
        for weight in model.graph.initializer:
            array = numpy_helper.to_array(weight)
            if array.dtype == np.float32:
                array = array * _apart(own[weight.name])
            weights.append(numpy_helper.from_array(array, own[weight.name]))
    shape = tuple(axis.dim_value for axis in models[0].graph.input[0].type.tensor_type.shape.dim)
    return model_of(nodes, {"t0": shape}, f"t{len(models)}", weights)


def _window(family: Family) -> dict[str, Any]:
    """Attributes of a convolution or pooling."""
    statics = dict(family.statics)
    padding = statics["padding"]
    assert isinstance(padding, tuple)
    named = {
        "kernel_shape": statics["kernel"],
        "strides": statics["stride"],
        "pads": padding + _end_padding(family),
    }
    return {**named, "dilations": statics["dilation"]} if "dilation" in statics else named


def _shape(family: Family, name: str) -> Shape:
    value = family[name]
    assert isinstance(value, tuple)
    return value


def _end_padding(family: Family) -> Shape:
    """What is added behind the image for the recorded output: more than before it where sizes round up."""
    dilations = dict(family.statics).get("dilation", (1,) * len(_shape(family, "kernel")))
    assert isinstance(dilations, tuple)
    return tuple(
        max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - given - before)
        for out, stride, kernel, dilation, given, before in zip(
            _shape(family, "output"), _shape(family, "stride"), _shape(family, "kernel"), dilations,
            _shape(family, "spatial"), _shape(family, "padding"), strict=True,
        )
    )  # fmt: skip


def _activation(family: Family) -> dict[str, Any]:
    parameters = {
        "Clip": [0.0, 6.0],
        "LeakyRelu": [0.01],
        "HardSigmoid": [1 / 6, 0.5],
        "HardSwish": [1 / 6, 0.5],
    }
    name = str(family["activation"])
    given = {"activation_params": parameters[name]} if name in parameters else {}
    return {"activation": name, **given} if name else {}


@dataclass(frozen=True)
class _Conv:
    """The channels of one convolution model."""

    n: int
    inputs: int
    outputs: int
    groups: int = 1


def _conv_model(family: Family, conv: _Conv, domain: str) -> ModelProto:
    given = (conv.n, conv.inputs, *_shape(family, "spatial"))
    weight = constant("w", (conv.outputs, conv.inputs // conv.groups, *_shape(family, "kernel")))
    attributes = {**_window(family), **_activation(family), "group": conv.groups}
    name = "FusedConv" if domain == CONTRIB else "Conv"
    node = helper.make_node(name, ["x", "w", "b"], ["y"], domain=domain, **attributes)
    return model_of([node], {"x": given}, "y", [weight, constant("b", (conv.outputs,))])


def _sets_to_channels(before: float, last: float, block: int) -> int:
    return int((before * SET + last) * block)


def _blocked_conv(family: Family, point: Point, block: int) -> ModelProto:
    n, inputs, before, last = point
    conv = _Conv(int(n), int(inputs) * block, _sets_to_channels(before, last, block))
    return _conv_model(family, conv, BLOCKED)


def _direct_conv(family: Family, point: Point, block: int) -> ModelProto:
    n, inputs, before, last = point
    conv = _Conv(int(n), int(inputs), _sets_to_channels(before, last, block))
    return _conv_model(family, conv, BLOCKED)


def _plain_domain(family: Family) -> str:
    return CONTRIB if family["activation"] else ""


def _plain_conv(family: Family, point: Point, block: int) -> ModelProto:
    del block
    n, inputs, outputs = (int(width) for width in point)
    return _conv_model(family, _Conv(n, inputs, outputs), _plain_domain(family))


def _blocked_depthwise(family: Family, point: Point, block: int) -> ModelProto:
    channels = int(point[1]) * block
    return _conv_model(family, _Conv(int(point[0]), channels, channels, channels), BLOCKED)


def _plain_depthwise(family: Family, point: Point, block: int) -> ModelProto:
    del block
    multiplier = family["multiplier"]
    assert isinstance(multiplier, int)
    inputs = max(1, int(point[1]) // multiplier)
    return _conv_model(
        family, _Conv(int(point[0]), inputs, inputs * multiplier, inputs), _plain_domain(family)
    )


def _blocked_grouped(family: Family, point: Point, block: int) -> ModelProto:
    n, groups, inputs = (int(width) for width in point[:3])
    outputs = _sets_to_channels(point[3], point[4], block)
    conv = _Conv(n, groups * inputs * block, groups * outputs, groups)
    return _conv_model(family, conv, BLOCKED)


def _plain_grouped(family: Family, point: Point, block: int) -> ModelProto:
    del block
    n, groups, inputs, outputs = (int(width) for width in point)
    return _conv_model(family, _Conv(n, groups * inputs, groups * outputs, groups), _plain_domain(family))


def _deconv(family: Family, point: Point, block: int) -> ModelProto:
    del block
    n, inputs, outputs = (int(width) for width in point)
    statics = dict(family.statics)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], kernel_shape=statics["kernel"], strides=statics["stride"],
        dilations=statics["dilation"], output_shape=statics["output"],
    )  # fmt: skip
    weight = constant("w", (inputs, outputs, *_shape(family, "kernel")))
    return model_of([node], {"x": (n, inputs, *_shape(family, "spatial"))}, "y", [weight])


def _pool(family: Family, point: Point, block: int, domain: str) -> ModelProto:
    channels = int(point[1]) * (block if domain else 1)
    node = helper.make_node(str(family["op"]), ["x"], ["y"], domain=domain, **_window(family))
    return model_of([node], {"x": (int(point[0]), channels, *_shape(family, "spatial"))}, "y")


def _reorder_input(family: Family, point: Point, block: int) -> ModelProto:
    channels = max(ALIGNMENT, round((point[1] * block + point[2]) / ALIGNMENT) * ALIGNMENT)
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED)
    return model_of([node], {"x": (int(point[0]), channels, 1, int(str(family["inner"])))}, "y")


def _reorder_output(family: Family, point: Point, block: int) -> ModelProto:
    n, before, last = (int(width) for width in point)
    node = helper.make_node("ReorderOutput", ["x"], ["y"], domain=BLOCKED, channels=before * block + last)
    return model_of([node], {"x": (n, (before + 1) * block, 1, int(str(family["inner"])))}, "y")


_OPERANDS = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_ROW = 64
"""Elements of the smaller operand where one is broadcast, such as a bias."""


def _elementwise(family: Family, point: Point, block: int) -> ModelProto:
    del block
    op, elements = str(family["op"]), int(point[0])
    shape = (1, elements)
    if op in _OPERANDS and family["inputs"] == 2:
        return model_of([helper.make_node(op, ["x", "z"], ["y"])], {"x": shape, "z": shape}, "y")
    limits = [constant("low", ()), constant("high", ())] if op == "Clip" else []
    if op in _OPERANDS:
        shape = (max(1, round(elements / _ROW)), min(elements, _ROW))
        limits = [constant("z", shape[1:])]
    names = ["x", *(limit.name for limit in limits)]
    # As SiLU it has a factor of 1, for which there is a shorter way.
    of_silu: dict[str, Any] = {"alpha": 1.0, "domain": CONTRIB} if op == "QuickGelu" else {}
    return model_of([helper.make_node(op, names, ["y"], **of_silu)], {"x": shape}, "y", limits)


def _norm(family: Family, point: Point, block: int) -> ModelProto:
    del block
    n, channels, inner = int(point[0]), int(point[1]), int(str(family["inner"]))
    names = ["scale", "shift", "mean", "variance"]
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"])
    return model_of(
        [node], {"x": (n, channels, 1, inner)}, "y", [constant(name, (channels,)) for name in names]
    )


def _concat(family: Family, point: Point, block: int) -> ModelProto:
    del block
    parts = max(1, int(str(family["inputs"])))
    inputs = {f"x{i}": (1, max(1, int(point[0]) // parts)) for i in range(parts)}
    return model_of([helper.make_node("Concat", list(inputs), ["y"], axis=1)], inputs, "y")


def _gemm(family: Family, point: Point, block: int) -> ModelProto:
    del family, block
    m, k, n = (int(width) for width in point)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    return model_of([node], {"x": (m, k)}, "y", [constant("w", (n, k)), constant("b", (n,))])


def _matmul(family: Family, point: Point, block: int) -> ModelProto:
    del family, block
    b, m, k, n = (int(width) for width in point)
    return model_of([helper.make_node("MatMul", ["x", "z"], ["y"])], {"x": (b, m, k), "z": (b, k, n)}, "y")


def _reduce(family: Family, point: Point, block: int) -> ModelProto:
    del family, block
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, (1,), [1])
    return model_of([node], {"x": (int(point[0]), int(point[1]))}, "y", [axes])


def _rows(family: Family, point: Point, block: int) -> ModelProto:
    del block
    op, shape = str(family["op"]), (1, int(point[0]), int(point[1]))
    weights = [] if op == "Softmax" else [constant("s", shape[2:]), constant("b", shape[2:])]
    names = [weight.name for weight in weights]
    if op == "SkipLayerNormalization":
        node = helper.make_node(op, ["x", "z", *names], ["y"], domain=CONTRIB)
        return model_of([node], {"x": shape, "z": shape}, "y", weights)
    return model_of([helper.make_node(op, ["x", *names], ["y"], axis=-1)], {"x": shape}, "y", weights)


def _copy(family: Family, point: Point, block: int) -> ModelProto:
    """`Transpose` scatters single elements, anything else moves whole rows."""
    del block
    elements = float(point[0])
    scattered = family["op"] == "Transpose"
    inner = 1 if scattered else min(_ROW, int(elements))
    rows = max(1, round((elements / inner) ** 0.5))
    shape = (1, rows, max(1, round(elements / inner / rows)), inner)
    return model_of([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3])], {"x": shape}, "y")


def _reshape(family: Family, point: Point, block: int) -> ModelProto:
    del family, point, block
    shape = helper.make_tensor("shape", TensorProto.INT64, (1,), [-1])
    return model_of([helper.make_node("Reshape", ["x", "shape"], ["y"])], {"x": (1, 64)}, "y", [shape])


RECIPES: Mapping[str, Recipe] = {
    "direct_conv": Recipe(conv_grid(False), conv_coordinates(False), _direct_conv, conv_widths(False)),
    "blocked_conv": Recipe(conv_grid(True), conv_coordinates(True), _blocked_conv, conv_widths(True)),
    "plain_conv": Recipe(plain_conv_grid, as_they_are, _plain_conv),
    "blocked_depthwise": Recipe(blocked_channels, blocked_coordinates, _blocked_depthwise, blocked_widths),
    "plain_depthwise": Recipe(each("ee"), as_they_are, _plain_depthwise),
    "blocked_grouped": Recipe(grouped_grid, grouped_coordinates, _blocked_grouped, grouped_widths),
    "plain_grouped": Recipe(each("eeee"), as_they_are, _plain_grouped),
    "deconv": Recipe(each("eee"), as_they_are, _deconv),
    "blocked_pool": Recipe(
        blocked_channels, blocked_coordinates, lambda f, p, b: _pool(f, p, b, BLOCKED), blocked_widths
    ),
    "plain_pool": Recipe(each("ee"), as_they_are, lambda f, p, b: _pool(f, p, b, "")),
    "reorder_input": Recipe(reorder_grid, reorder_coordinates, _reorder_input, reorder_widths),
    "reorder_output": Recipe(reorder_grid, reorder_coordinates, _reorder_output, reorder_widths),
    "elementwise": Recipe(each("g"), as_they_are, _elementwise),
    "norm": Recipe(each("ee"), as_they_are, _norm),
    "concat": Recipe(each("g"), as_they_are, _concat),
    "gemm": Recipe(each("egg"), as_they_are, _gemm),
    "matmul": Recipe(each("eeee"), as_they_are, _matmul),
    "reduce": Recipe(each("ee"), as_they_are, _reduce),
    "rows": Recipe(each("ee"), as_they_are, _rows),
    "copy": Recipe(each("g"), as_they_are, _copy),
    "reshape": Recipe(each(""), as_they_are, _reshape),
}
