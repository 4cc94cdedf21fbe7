"""What is asked of ONNX Runtime once a machine: its layout, what a call costs, how far away weights are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sned.devices.machine import processor_name
from sned.devices.recipes import BLOCKED, constant, model_of
from sned.devices.store import Environment
from sned.errors import MeasureError
from sned.runtime import session_options

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Fetching = Literal["window", "points", "plain window", "plain points", "place", "rows", "row"]
"""How an op goes through its weights: a convolution with a window, one without, the same of images that are not kept in
blocks, one of a single place, a product of rows, or of one row, which (like one place) does little but fetch them."""

FETCHING: tuple[Fetching, ...] = get_args(Fetching)

CHAIN_BYTES = 64 * 64 * 9 * 4
"""Bytes of the weights of each op of a chain: 64 channels and a window of 3 × 3, or 192 channels without one."""

LONG = 4
"""Of how many times as many weights the ops of a chain of long ones are: twice as wide."""

AGED_MB = 4.0
"""Of the weights of an `aged_chain`: less than the last cache holds."""

_SIDE, _WIDTH = 7, 192
_ROWS: Mapping[Fetching, int] = {"rows": 32, "row": 1}


def chain_length(megabytes: float, *, long: bool = False) -> int:
    """Ops of a chain whose weights fill about so much."""
    return max(1, round(megabytes * 1e6 / (CHAIN_BYTES * (LONG if long else 1))))


def nodes(count: int) -> ModelProto:
    """As many ops, each on one number."""
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    return model_of([helper.make_node("Sin", [a], [b]) for a, b in pairwise(names)], {"x": (1,)}, "y")


def yardstick(block: int) -> ModelProto:
    """One convolution of middling size."""
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    _add_convolution(nodes, weights, block, 64, 3)
    return model_of(nodes, {"t0": (1, 64, 16, 16)}, "t1", weights)


def chain(fetching: Fetching, megabytes: float, block: int, *, long: bool = False) -> ModelProto:
    """As many small ops in a row, with weights of their own: how fast weights come from afar.

    Args:
        fetching: how the ops go through their weights.
        megabytes: of all weights, about.
        block: of the runtime's layout.
        long: fewer and larger ops, twice as wide: they show what it costs to begin.
    """
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    width, kernel = (64, 3) if fetching.endswith("window") else (_WIDTH, 1)
    block = 1 if fetching.startswith("plain") else block
    width = 2 * width if long else width
    rows = _ROWS.get(fetching)
    for _ in range(chain_length(megabytes, long=long)):
        if rows is None:
            _add_convolution(nodes, weights, block, width, kernel)
        else:
            _add_product(nodes, weights, width)
    side = 1 if fetching == "place" else _SIDE
    shape = (1, width, side, side) if rows is None else (rows, width)
    return model_of(nodes, {"t0": shape}, f"t{len(nodes)}", weights)


def aged_chain(yardsticks: int, block: int, *, bare: bool = False) -> ModelProto:
    """A chain of products of one row behind work that needs no memory: how far its weights are by then.

    Args:
        yardsticks: how often the yardstick's convolution is run, each time with the same weights.
        block: of the runtime's layout.
        bare: that work alone.
    """
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    for _ in range(yardsticks):
        _add_convolution(nodes, weights, block, 64, 3)
    for node in nodes:
        node.input[1:] = nodes[0].input[1:]
    del weights[2:]
    weights += [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (("flat", [1, -1]), ("first", [0]), ("last", [_WIDTH]), ("axis", [1]))
    ]
    place = len(nodes)
    nodes.append(helper.make_node("Reshape", [f"t{place}", "flat"], [f"t{place + 1}"]))
    nodes.append(helper.make_node("Slice", [f"t{place + 1}", "first", "last", "axis"], [f"t{place + 2}"]))
    for _ in range(0 if bare else chain_length(AGED_MB)):
        _add_product(nodes, weights, _WIDTH)
    return model_of(nodes, {"t0": (1, 64, 16, 16)}, f"t{len(nodes)}", weights)


def _add_product(nodes: list[NodeProto], weights: list[TensorProto], width: int) -> None:
    place = len(nodes)
    weights.append(constant(f"w{place}", (width, width), 0.001))
    weights.append(constant(f"b{place}", (width,)))
    nodes.append(helper.make_node("Gemm", [f"t{place}", f"w{place}", f"b{place}"], [f"t{place + 1}"]))


def _add_convolution(
    nodes: list[NodeProto], weights: list[TensorProto], block: int, channels: int, kernel: int
) -> None:
    place = len(nodes)
    # Small weights and a bias: through hundreds of ops numbers neither grow nor shrink to denormals, which
    # are a hundred times slower.
    weights.append(constant(f"w{place}", (channels, channels, kernel, kernel), 0.001))
    weights.append(constant(f"b{place}", (channels,)))
    attributes: dict[str, Any] = {
        "kernel_shape": [kernel, kernel],
        "pads": [kernel // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": 1,
    }
    domain = BLOCKED if block > 1 else ""
    nodes.append(
        helper.make_node(
            "Conv", [f"t{place}", f"w{place}", f"b{place}"], [f"t{place + 1}"], domain=domain, **attributes
        )
    )


def open_op(model: ModelProto, threads: int, *, awake: bool = True) -> InferenceSession:
    """Open a model of one op as it is, without the transformer that would put it into another layout.

    Args:
        model: of one op.
        threads: inside an op.
        awake: whether its threads stay awake from one run to the next, as in a network from one op to the next.

    Raises:
        MeasureError: the runtime does not take it.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(),
            session_options(threads, awake=awake),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["NchwcTransformer"],
        )
    except Exception as error:
        names = ", ".join(dict.fromkeys(node.op_type for node in model.graph.node))
        raise MeasureError(
            f"The time of {names} must be measured, but ONNX Runtime {onnxruntime.__version__} does not run "
            f"it: {str(error).strip()}. Install a newer onnxruntime."
        ) from error


def block_size() -> int:
    """Ask the runtime for the channels in a block of its layout; 1 where it keeps images as they are."""
    import onnxruntime

    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])
    probe = model_of([node], {"x": (1, 64, 2, 2)}, "y", [constant("w", (1, 64, 1, 1))])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = session_options(1)
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = onnx.load(path).graph
    with suppress(StopIteration):
        conv = next(node for node in made.node if node.domain == BLOCKED and node.op_type == "Conv")
        weight = next(value for value in made.initializer if value.name == conv.input[1])
        return int(weight.dims[0])
    return 1


def environment(threads: int) -> Environment:
    """What measured times depend on, here and now."""
    import onnxruntime

    return Environment(f"onnxruntime {onnxruntime.__version__}", processor_name() or "unknown", threads)
