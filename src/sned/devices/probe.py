"""What is asked of ONNX Runtime once a machine: its layout, what a call costs, how far away weights are."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from sned.devices.machine import processor_name
from sned.devices.recipes import BLOCKED, constant, model_of
from sned.devices.store import Environment
from sned.errors import MeasureError
from sned.runtime import session_options

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CHAIN_ROWS, _CHAIN_WIDTH = 64, 192
"""Of a `chain_of_rows`, whose products have as many weights as the convolutions of a `chain`."""

_CHAIN_CHANNELS = 64
CHAIN_BYTES = _CHAIN_CHANNELS**2 * 9 * 4
"""Bytes of the weights of each convolution of a `chain`."""


def chain_length(megabytes: float) -> int:
    """Ops of a chain whose weights fill about so much."""
    return max(1, round(megabytes * 1e6 / CHAIN_BYTES))


def nodes(count: int) -> ModelProto:
    """As many ops, each on one number."""
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    return model_of([helper.make_node("Sin", [a], [b]) for a, b in pairwise(names)], {"x": (1,)}, "y")


def yardstick(block: int) -> ModelProto:
    """One convolution of middling size."""
    return chain(1, block, side=16)


def chain(count: int, block: int, *, side: int = 4, paired: bool = False) -> ModelProto:
    """As many small convolutions in a row, with weights of their own: how fast weights come from afar.

    Args:
        count: convolutions.
        block: of the runtime's layout.
        side: of the image.
        paired: behind each another one with next to no weights, which shows what it costs to begin.
    """
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    for _ in range(count):
        _add_convolution(nodes, weights, block, kernel=3, group=1)
        if paired:
            _add_convolution(nodes, weights, block, kernel=1, group=_CHAIN_CHANNELS)
    return model_of(nodes, {"t0": (1, _CHAIN_CHANNELS, side, side)}, f"t{len(nodes)}", weights)


def chain_of_rows(count: int) -> ModelProto:
    """As many products of rows in a row, with weights of their own."""
    weights = [constant(f"w{place}", (_CHAIN_WIDTH, _CHAIN_WIDTH), 0.001) for place in range(count)]
    weights += [constant(f"b{place}", (_CHAIN_WIDTH,)) for place in range(count)]
    products = [
        helper.make_node("Gemm", [f"t{place}", f"w{place}", f"b{place}"], [f"t{place + 1}"])
        for place in range(count)
    ]
    return model_of(products, {"t0": (CHAIN_ROWS, _CHAIN_WIDTH)}, f"t{count}", weights)


def _add_convolution(
    nodes: list[NodeProto], weights: list[TensorProto], block: int, *, kernel: int, group: int
) -> None:
    place, channels = len(nodes), _CHAIN_CHANNELS
    # Small weights and a bias: through hundreds of ops numbers neither grow nor shrink to denormals, which
    # are a hundred times slower.
    weights.append(constant(f"w{place}", (channels, channels // group, kernel, kernel), 0.001))
    weights.append(constant(f"b{place}", (channels,)))
    attributes: dict[str, Any] = {
        "kernel_shape": [kernel, kernel],
        "pads": [kernel // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": group,
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
