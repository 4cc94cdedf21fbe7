"""ONNX: exported by PyTorch's own exporter, quantised by ONNX Runtime's own tools, run in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import nn

from sned.errors import ExportError, MeasureError, UserError
from sned.export.capture import Captured, first_sentence, quiet
from sned.export.exported import Exported
from sned.export.onnx_file import check, compact, module_of, save, set_apart, sparse_initializers
from sned.export.parity import Array
from sned.export.road import export
from sned.export.steps import shapes_of_one_step
from sned.export.structure import arrays, at_batch
from sned.export.target import DYNAMIC, FP16, FP32, INT8, NONE_COARSER, NONE_SPARSE, Order, Target
from sned.graph.example import Inputs, arguments
from sned.runtime import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch.onnx import ONNXProgram


def export_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    tolerance: float | None = None,
    opset_version: int | None = None,
    seed: int = 0,
) -> Exported:
    """Export a model to an ONNX file that ONNX Runtime runs to the same outputs as PyTorch.

    `sned.export(model, example_inputs, to="onnx", out=path)` without timing; see there.

    Args:
        model: any module; it is copied, exported in evaluation mode and left as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        path: of the file to write.
        tolerance: how far an element may be off, as a fraction of the largest magnitude in its output.
        opset_version: of the ONNX operators, 18 or newer.
        seed: of the fresh inputs.

    Example:
        exported = export_onnx(model, torch.randn(1, 3, 32, 32), "model.onnx")
        exported.max_abs_diff
    """
    return export(
        model,
        example_inputs,
        out=path,
        tolerance=tolerance,
        opset=opset_version,
        seed=seed,
        sparse=False,
        runs=0,
    )


def feeds(exported: Exported, example_inputs: Inputs, *, batch: int | None = None) -> dict[str, Array]:
    """What to feed a session of the file for these inputs: input name → array.

    Args:
        exported: the file.
        example_inputs: of the same structure as those that it was exported with.
        batch: repeat or cut the rows to this many; None leaves them.
    """
    given = exported.call.ordered(*arguments(example_inputs))
    inputs = given if batch is None else at_batch(given, batch, exported.call.batched)
    return dict(zip(exported.inputs, arrays(inputs), strict=True))


def _write(levels: Mapping[str, Captured], order: Order) -> tuple[str, ...]:
    [(level, captured)] = levels.items()
    program = _convert(captured, order.opset)
    if order.precision == FP32 and not order.sparse:
        save(program, order.path)
        return ()
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        save(program, plain)
        made = _coarser(plain, captured, order, order.samples(level))
        coarser = _remarks(made, order.precision)
        zeros = (TARGET.sparse if sparse_initializers(made) else NONE_SPARSE,) if order.sparse else ()
        onnx.save(made, order.path)
    check(order.path, shapes=not order.sparse)
    return (*coarser, *zeros)


def _remarks(made: onnx.ModelProto, precision: str) -> tuple[str, ...]:
    """What there is to say of a precision, or that the quantiser took nothing."""
    eighths = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    weights = [tensor.data_type for tensor in made.graph.initializer if len(tensor.dims) > 1]
    if precision not in (INT8, DYNAMIC) or any(kind in eighths for kind in weights):
        return _REMARKS.get(precision, ())
    lstm = precision == INT8 and any(node.op_type == "LSTM" for node in made.graph.node)
    return (f"{NONE_COARSER} 'int8-dynamic' takes LSTMs." if lstm else NONE_COARSER,)


_REMARKS: Mapping[str, tuple[str, ...]] = {
    INT8: (
        "Activations are unsigned and weights signed: the fast way round on x86 with VNNI, and good on ARM.",
    ),
    FP16: (
        "ONNX Runtime computes in 32 bits on most CPUs whatever the file holds: fp16 is for size and for GPUs.",
    ),
}


def _coarser(
    plain: Path, captured: Captured, order: Order, samples: Sequence[Sequence[Array]]
) -> onnx.ModelProto:
    """The graph at the precision asked for, by ONNX Runtime's own tools."""
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    ready, made = plain.with_name("ready.onnx"), plain.with_name("made.onnx")
    try:
        with quiet():
            if order.precision == FP32:
                return onnx.load(plain)
            if order.precision == FP16:
                return _halves(plain)
            _prepare(plain, ready)
            if order.precision == DYNAMIC:
                quantize_dynamic(
                    ready,
                    made,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=_left_whole(ready),
                )
            else:
                quantize_static(
                    ready,
                    made,
                    _Reader(captured.inputs, samples),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    nodes_to_exclude=_left_whole(ready),
                    op_types_to_quantize=[*PRODUCTS, "Gather"] if captured.attends else None,
                )
        quantised = onnx.load(made)
        compact(quantised)
        return quantised
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime's quantiser cannot make '{order.precision}' of this model: {first_sentence(error)} "
            "Export it without `quantize`, or to another runtime."
        ) from error


def _halves(plain: Path) -> onnx.ModelProto:
    """The graph in 16-bit floats between inputs and outputs of 32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    made: onnx.ModelProto = convert_float_to_float16(onnx.load(plain), keep_io_types=True)
    # The converter casts a tensor once for each op that wants it in 32 bits, under one name, and at the end; it tells a
    # constant that it left in 32 bits as one in 16.
    once = {tuple(node.output): node for node in made.graph.node}
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(once.values())
    OnnxModel(made).topological_sort()
    return made


PRODUCTS = ("MatMul", "Gemm", "Conv")
"""What is in 8 bits of a network with attention, beside its tables: with its norms, sums and masks in 8 bits too, an
encoder was measured to answer at random."""


def _prepare(plain: Path, ready: Path) -> None:
    """Fold BatchNorm, infer shapes, and set weights apart: the quantiser fails on the raw graph.

    The symbolic inference of ONNX Runtime fails on some graphs that its runtime takes; these do without it.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(plain), str(ready))
    except Exception:  # noqa: BLE001 (it fails with whatever comes)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    made = onnx.load(ready)
    set_apart(made)
    onnx.save(made, ready)


def _left_whole(path: Path) -> list[str]:
    """What ONNX Runtime has not in 8 bits per channel: products with constants of three axes and more, and transposed
    convolutions in groups."""
    graph = onnx.load(path).graph
    deep = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2}

    def lacks(node: onnx.NodeProto) -> bool:
        groups = [each.i for each in node.attribute if each.name == "group"]
        return (node.op_type == "MatMul" and bool(deep & {*node.input})) or (
            node.op_type == "ConvTranspose" and groups > [1]
        )

    return [node.name for node in graph.node if lacks(node)]


class _Reader:
    """Calibration inputs as ONNX Runtime's quantiser asks for them."""

    def __init__(self, names: Sequence[str], samples: Sequence[Sequence[Array]]) -> None:
        self._names, self._samples = names, samples
        self._left: Iterator[Sequence[Array]] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """The next inputs by name; None when there are no more."""
        row = next(self._left, None)
        return None if row is None else dict(zip(self._names, row, strict=True))

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._samples)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(dict(zip(self._names, row, strict=True)) for row in self._samples)


class OnnxSession:
    """A file in ONNX Runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        try:
            self.session: InferenceSession = open_session(path, threads=threads)
        except MeasureError as error:
            raise ExportError(str(error)) from error
        self.names = [value.name for value in self.session.get_inputs()]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; raises `ExportError` naming the module that a node came from."""
        try:
            return [np.asarray(a) for a in self.session.run(None, dict(zip(self.names, inputs, strict=True)))]
        except Exception as error:
            node = re.search(r"running (\w+) node\. Name:'([^']*)'", str(error))
            module = module_of(self.path, node[2]) if node else ""
            where = f" in '{node[1]}' of module '{module}'" if node and module else ""
            rows = next((array.shape[0] for array in inputs if array.ndim), 1)
            raise ExportError(
                f"ONNX Runtime cannot run the exported file{where} at a batch of {rows}: {first_sentence(error)}"
            ) from error


def _read(path: Path, level: str, threads: int) -> OnnxSession:
    del level  # there is one
    return OnnxSession(path, threads)


def _convert(captured: Captured, opset_version: int | None) -> ONNXProgram:
    recorded, lstm = captured.program, torch.ops.aten.lstm.input
    try:
        with quiet(), torch.no_grad(), shapes_of_one_step():
            if captured.projects:  # step by step
                recorded = recorded.run_decompositions({lstm: torch.export.default_decompositions()[lstm]})
            program = torch.onnx.export(
                recorded,
                (),
                dynamo=True,
                input_names=captured.inputs,
                output_names=captured.outputs,
                opset_version=opset_version,
            )
    except Exception as error:
        raise ExportError(
            f"The model cannot be written as ONNX: {_untranslated(error, captured)} "
            "Replace that operation, or export the part of the model before it."
        ) from error
    if program is None:
        raise ExportError("The exporter of PyTorch returned nothing. Is a fitting `onnxscript` installed?")
    _name_batch_axis(program)
    written = program.model.opset_imports[""]
    if opset_version not in (None, written):
        raise UserError(
            f"`opset` must be a version that PyTorch's exporter can write, got {opset_version}: it wrote {written} "
            "instead. Leave `opset` out, or ask for another one from 18 on."
        )
    return program


def _untranslated(error: BaseException, captured: Captured) -> str:
    """Which operation of which module the exporter failed on, from the chain of its exceptions."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    found = (re.search(r"node %(\w+) .*target=torch\.ops\.([\w.]+)\]", str(link)) for link in chain)
    failed = next(filter(None, found), None)
    if failed is None:
        return first_sentence(chain[-1])
    node, target = failed.groups()
    module = _module_of_node(captured.program, node)
    where = f" in module '{module}'" if module else ""
    if "No ONNX function found" in str(chain[-1]):
        numbers = " for complex numbers" if "complex" in str(chain[-1]) else ""
        return f"'{target}'{where} has no ONNX translation{numbers}."
    return f"'{target}'{where}: {first_sentence(chain[-1])}"


def _module_of_node(program: torch.export.ExportedProgram, name: str) -> str:
    """The innermost module that a node came from; nodes are named as they are after decomposition, or before where ONNX
    takes what PyTorch decomposes."""
    with quiet():
        nodes = [*program.run_decompositions().graph.nodes, *program.graph.nodes]
    stacks = (node.meta.get("nn_module_stack") or {} for node in nodes if node.name == name)
    paths = [path for stack in stacks for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""


def _name_batch_axis(program: ONNXProgram) -> None:
    """The exporter calls the open axis "s77" or so; there is only the batch."""
    for value in program.model.graph.inputs:
        for size in value.shape or ():
            if not isinstance(size, int) and size.value is not None and size.value != "batch":
                program.rename_axes({size.value: "batch"})
                return


TARGET = Target(
    name="onnx",
    title="ONNX Runtime",
    suffix=".onnx",
    modules=("onnx", "onnxruntime"),
    extra="",
    precisions=(FP32, FP16, INT8, DYNAMIC),
    write=_write,
    read=_read,
    dynamic_batch=True,
    wide=(INT8, DYNAMIC),
    options=("opset",),
    sparse=(
        "Zeros are left out of the file, which gets smaller; ONNX Runtime fills them in when it opens the file, so "
        "that neither memory nor time is gained on any hardware."
    ),
)
