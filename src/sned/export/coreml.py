"""Core ML: converted and compressed by coremltools; read back from the saved package and evaluated op by op.

Apple's runtime is on Apple's systems only. What is checked here is the program and the weights as they lie in the
package (`mil.py`), and the result says so.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from sned.errors import ExportError, UserError
from sned.export.capture import Captured, first_sentence, quiet
from sned.export.coreml_file import compact, is_sparse
from sned.export.parity import Array
from sned.export.target import FP16, FP32, INT8, NONE_SPARSE, Order, Target

DEFAULT = "main"
"""What the runtime calls the only function of a package."""

SYSTEMS = ("iOS15", "iOS16", "iOS17", "iOS18")
"""Oldest systems that a package can be made for; macOS 12 to 15 go with them."""

_SMALL = 512
"""Weights of fewer elements are left as they are: they would not get smaller."""

_BLIND = "Apple's runtime was not run: the saved program was read back and evaluated from its own graph and weights."


def _write(levels: Mapping[str, Captured], order: Order) -> tuple[str, ...]:
    system = _system(order, len(levels))
    with quiet(), TemporaryDirectory() as folder:
        import coremltools

        packages = {}
        for name, level in levels.items():
            packages[name] = Path(folder) / f"{name or DEFAULT}.mlpackage"
            _compressed(_convert(level, order, system), order).save(str(packages[name]))
        [first, *others] = packages
        if not others and not first:
            shutil.copytree(packages[first], order.path)
        else:
            together = coremltools.utils.MultiFunctionDescriptor()
            for name, package in packages.items():
                together.add_function(str(package), src_function_name=DEFAULT, target_function_name=name)
            together.default_function_name = first
            coremltools.utils.save_multifunction(together, str(order.path))
    compact(order.path)
    zeros = (TARGET.sparse if is_sparse(order.path) else NONE_SPARSE,) if order.sparse else ()
    return (f"For {system} and later.", _BLIND, *zeros)


def _system(order: Order, levels: int) -> str:
    """The oldest system that takes what is asked for, or the one that was named, if that does."""
    forms = {
        "several functions": ("iOS18", levels > 1),
        "weights that are both sparse and int8": ("iOS18", order.sparse and order.precision == INT8),
        "sparse weights": ("iOS16", order.sparse),
        "int8 weights": ("iOS16", order.precision == INT8),
    }
    needed = {name: system for name, (system, used) in forms.items() if used}
    if order.system is None:
        return max(["iOS17", *needed.values()], key=SYSTEMS.index)
    if order.system not in SYSTEMS:
        raise UserError(f"`system` must be one of {', '.join(SYSTEMS)} for Core ML, got {order.system!r}.")
    late = [name for name, system in needed.items() if SYSTEMS.index(system) > SYSTEMS.index(order.system)]
    if late:
        raise UserError(
            f"Core ML has {late[0]} from {needed[late[0]]} on, and the package is to run on {order.system}. "
            f"Leave that out, or raise `system` to {needed[late[0]]}."
        )
    return order.system


def _convert(level: Captured, order: Order, system: str) -> Any:
    import coremltools

    _teach()
    bytes_ = [tensor.dtype for tensor in level.example if tensor.dtype in (torch.uint8, torch.int8)]
    if bytes_:
        raise ExportError(
            f"Core ML packages take no inputs of type {str(bytes_[0]).removeprefix('torch.')}. Let the model take "
            "float32, and convert the inputs in the app."
        )
    precision = coremltools.precision.FLOAT32 if order.precision == FP32 else coremltools.precision.FLOAT16
    try:
        with torch.no_grad():
            program = torch.export.export(level.positional(), level.example).run_decompositions(_apart(level))
            _spell_out(program)
            return coremltools.convert(
                program,
                inputs=[
                    coremltools.TensorType(name, dtype=_ENTERING.get(tensor.dtype, np.float32))
                    for name, tensor in zip(level.inputs, level.example, strict=True)
                ],
                outputs=[coremltools.TensorType(name=name) for name in level.outputs],
                convert_to="mlprogram",
                compute_precision=precision,
                minimum_deployment_target=getattr(coremltools.target, system),
                skip_model_load=True,
            )
    except Exception as error:
        origin = level.origin(error)
        reason = f"{origin} has no Core ML translation." if origin else first_sentence(error)
        raise ExportError(
            f"The model cannot be written for Core ML: {reason} "
            "Replace that operation, or export the part of the model before it."
        ) from error


_ENTERING = {torch.float16: np.float16, **dict.fromkeys((torch.int16, torch.int32, torch.int64), np.int32)}
"""As what tensors enter that are no 32-bit floats; unless it is said, a package in fp16 takes indices in 16 bits."""


def _compressed(model: Any, order: Order) -> Any:
    """Zeros left out where that makes a weight smaller, and weights in 8 bits."""
    import coremltools.optimize.coreml as optimize

    if order.sparse:
        # Only the zeros that are there: the magnitude pruner skips large layers of fp16 programs without a word.
        packed = optimize.OpThresholdPrunerConfig(
            threshold=1e-12, minimum_sparsity_percentile=0.5, weight_threshold=_SMALL
        )
        model = optimize.prune_weights(model, optimize.OptimizationConfig(global_config=packed))
    if order.precision == INT8:
        eighth = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=_SMALL)
        config = optimize.OptimizationConfig(global_config=eighth)
        joint = {"joint_compression": True} if order.sparse else {}
        model = optimize.linear_quantize_weights(model, config, **joint)
    return model


def _apart(level: Captured) -> dict[Any, Any]:
    """How ops are taken apart that the converter lacks, or of which it does not see the type that is asked for: those
    that make tensors like others, or choose a number.

    Recurrent layers but the LSTM go step by step, for Core ML's GRU adds its biases elsewhere than PyTorch's; LSTMs too
    where one projects its state.
    """
    aten = torch.ops.aten

    def where(condition: torch.Tensor, given: torch.Tensor, other: float) -> torch.Tensor:
        kind = torch.result_type(given, other)
        return torch.where(condition, given.to(kind), torch.full((), other, dtype=kind))

    def full_like(like: torch.Tensor, number: float, **options: Any) -> torch.Tensor:
        return torch.full(like.shape, number, dtype=options.get("dtype") or like.dtype)

    like = {
        aten.full_like.default: full_like,
        aten.zeros_like.default: partial(full_like, number=0),
        aten.ones_like.default: partial(full_like, number=1),
    }
    plain = (aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.unsafe_split.Tensor)
    layers = (aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input, *[aten.lstm.input] * level.projects)
    cells = (aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
    table = torch.export.default_decompositions()
    made = {op: table[op] for op in (*plain, *layers, *(cell.default for cell in cells))}
    return {**made, **like, aten.where.ScalarOther: where}


def _spell_out(program: torch.export.ExportedProgram) -> None:
    """What the converter wants to be told: pools without a stride step by their window, `&` of truths is `and`."""
    aten = torch.ops.aten
    for node in program.graph.nodes:
        if node.target == aten.__and__.Tensor and node.meta["val"].dtype == torch.bool:
            node.target = aten.logical_and.default
        if re.match(r"aten\.(max|avg)_pool\dd\b", str(node.target)) and len(node.args) == 2:
            node.args = (*node.args, node.args[1])


def _teach() -> None:
    """Teach the converter what PyTorch leaves in its programs: `alias`, and an LSTM of three outputs."""
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    def alias(context: Any, node: Any) -> None:
        context.add(ops._get_inputs(context, node, expected=1)[0], torch_name=node.name)

    def lstm(context: Any, node: Any) -> None:
        named = copy.copy(node)
        named.outputs = [f"{node.name}_{part}" for part in ("steps", "hidden", "cell")]
        ops.lstm(context, named)
        context.add(tuple(context[name] for name in named.outputs), torch_name=node.name)

    _TORCH_OPS_REGISTRY.set_func_by_name(alias, "alias")
    _TORCH_OPS_REGISTRY.set_func_by_name(lstm, "lstm.input")


class CoreMlReading:
    """A function of a saved package, evaluated from its own graph and weights."""

    def __init__(self, path: Path, level: str, threads: int) -> None:
        del threads
        with quiet():
            from sned.export.mil import Program

            self.program = Program(path, level or DEFAULT)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Evaluate once; raises `ExportError` for an operation that the reader does not know."""
        return self.program.run([np.asarray(array, order="C") for array in inputs])


TARGET = Target(
    name="coreml",
    title="Core ML",
    suffix=".mlpackage",
    modules=("coremltools",),
    extra="coreml",
    precisions=(FP32, FP16, INT8),
    write=_write,
    read=CoreMlReading,
    levels="functions",
    sparse=(
        "Weights with at least half of their entries zero are stored sparse, which makes the package smaller; "
        "the Neural Engine of A17 Pro, M4 and later can gain time from it, and none of that could be measured here."
    ),
    here=False,
    options=("system",),
)
