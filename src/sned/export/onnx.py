"""ONNX: exported by PyTorch's own exporter, then compared with the model in ONNX Runtime."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sned.errors import ExportError, MeasureError, ModelError
from sned.export.capture import Captured, Subject, first_sentence, quiet
from sned.export.onnx_file import file_bytes, module_of, opset, written
from sned.export.parity import Array, Parity, compare, worst
from sned.export.structure import at_batch, batch_size, fresh, tensors
from sned.graph.example import Inputs, describe
from sned.runtime import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch.onnx import ONNXProgram

TOLERANCES: Mapping[torch.dtype, float] = {torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""What an element may be off where the weights are coarser than float32: some ten roundings."""

TOLERANCE = 1e-4
"""In float32, rounding on a deep network stays a hundred times below this; a wrong graph does not."""

_FRESH_BATCHES = (1, 3)


@dataclass(frozen=True)
class Exported:
    """An ONNX file that computes what the model computes.

    Attributes:
        path: where it is.
        size_bytes: of the file, with that of external data where there is any.
        opset: version of the ONNX operators that it uses.
        inputs: names of the inputs, in the order of the model's tensors.
        outputs: names of the outputs.
        dynamic_batch: whether it takes batches of any size.
        static_because: why not, where it does not.
        parity: the worst of the example and of fresh inputs, against PyTorch.
        batches: the batch sizes compared.
    """

    path: Path
    size_bytes: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    static_because: str
    parity: Parity
    batches: tuple[int, ...]

    @property
    def max_abs_diff(self) -> float:
        """Largest absolute difference to PyTorch of any element of any output."""
        return self.parity.max_abs_diff

    @property
    def max_rel_diff(self) -> float:
        """The same, over the largest magnitude in that output."""
        return self.parity.max_rel_diff


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

    The batch size is left open where that works, and fixed to the example's where it does not. The file is
    compared on the example and on fresh inputs, at batches of 1 and 3 as well; it gets its name only after
    that, so that a file that is there is a file that agrees.

    Args:
        model: any module; it is copied, exported in evaluation mode and left as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; a tensor whose first
            axis is as long as the first tensor's is taken to have the batch there.
        path: of the file to write.
        tolerance: how far an element may be off, as a fraction of the largest magnitude in its output; None
            for 1e-4, and more where weights are of half precision.
        opset_version: of the ONNX operators; None for the exporter's default. Below 18 the file may have a
            newer one.
        seed: of the fresh inputs.

    Raises:
        ModelError: the model does not run on the example, or returns NaN.
        ExportError: an operation cannot be exported (named, with its module), or the outputs disagree.
        WriteError: the disk is full or the folder is not writable.

    Example:
        exported = export_onnx(model, torch.randn(1, 3, 32, 32), "model.onnx")
        exported.max_abs_diff
    """
    allowed = _default_tolerance(model) if tolerance is None else tolerance
    job = _Job(Subject(model), example_inputs, Path(path), allowed, opset_version, seed)
    describe(example_inputs)
    _refuse_nan(job.subject.run(example_inputs))
    try:
        return _attempt(job, dynamic=True)
    except (ExportError, ModelError) as error:
        reason = str(error)
    return _attempt(job, dynamic=False, static_because=reason)


def feeds(exported: Exported, example_inputs: Inputs, *, batch: int | None = None) -> dict[str, Array]:
    """What to feed a session of the file for these inputs: input name → array.

    Args:
        exported: the file.
        example_inputs: of the same structure as those that it was exported with.
        batch: repeat or cut the rows to this many; None leaves them.
    """
    inputs = example_inputs if batch is None else at_batch(example_inputs, batch)
    return _feeds(exported.inputs, inputs)


@dataclass(frozen=True)
class _Job:
    subject: Subject
    example: Inputs
    path: Path
    tolerance: float
    opset_version: int | None
    seed: int


def _attempt(job: _Job, *, dynamic: bool, static_because: str = "") -> Exported:
    captured = job.subject.capture(job.example, dynamic_batch=dynamic)
    with written(_convert(captured, job.opset_version), job.path) as beside:
        inputs, parity, batches = _verify(job, beside, dynamic=dynamic)
        if not parity.within(job.tolerance):
            raise ExportError(
                "The exported file does not compute what the model computes: outputs differ by up to "
                f"{parity.max_abs_diff:.3g} ({parity.max_rel_diff:.3g} of the largest), where "
                f"{job.tolerance:g} is allowed. The file was not kept. If the model draws random numbers in "
                "evaluation mode, make it repeatable; if this is only rounding, allow it with `tolerance`."
            )
        size, version = file_bytes(beside), opset(beside)
    outputs = captured.outputs
    return Exported(job.path, size, version, inputs, outputs, dynamic, static_because, parity, batches)


def _convert(captured: Captured, opset_version: int | None) -> "ONNXProgram":
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                captured.program, (), dynamo=True, output_names=captured.outputs, opset_version=opset_version
            )
    except Exception as error:
        raise ExportError(
            f"The model cannot be written as ONNX: {_untranslated(error, captured)} "
            "Replace that operation, or export the part of the model before it."
        ) from error
    if program is None:
        raise ExportError("The exporter of PyTorch returned nothing. Is a fitting `onnxscript` installed?")
    _name_batch_axis(program)
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
        return f"'{target}'{where} has no ONNX translation."
    return f"'{target}'{where}: {first_sentence(chain[-1])}"


def _module_of_node(program: torch.export.ExportedProgram, name: str) -> str:
    """The innermost module that a node came from; nodes are named as they are after decomposition."""
    with quiet():
        nodes = program.run_decompositions().graph.nodes
    stacks = (node.meta.get("nn_module_stack") or {} for node in nodes if node.name == name)
    paths = [path for stack in stacks for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""


def _default_tolerance(model: nn.Module) -> float:
    return max((TOLERANCES.get(weight.dtype, TOLERANCE) for weight in model.parameters()), default=TOLERANCE)


def _name_batch_axis(program: "ONNXProgram") -> None:
    """The exporter calls the open axis "s77" or so; there is only the batch."""
    for value in program.model.graph.inputs:
        for size in value.shape or ():
            if not isinstance(size, int) and size.value is not None and size.value != "batch":
                program.rename_axes({size.value: "batch"})
                return


def _verify(job: _Job, path: Path, *, dynamic: bool) -> tuple[tuple[str, ...], Parity, tuple[int, ...]]:
    """Compare the file with the model on the example and on fresh inputs."""
    try:
        session = open_session(path)
    except MeasureError as error:
        raise ExportError(str(error)) from error
    inputs = tuple(value.name for value in session.get_inputs())
    own = batch_size(job.example)
    sizes = _FRESH_BATCHES if dynamic else (own,)
    trials = [job.example, *(fresh(job.example, size, seed=job.seed + size) for size in sizes)]
    parity = worst(_compared(job.subject, session, path, inputs, trial) for trial in trials)
    return inputs, parity, tuple(sorted({own, *sizes}))


def _compared(
    subject: Subject, session: "InferenceSession", path: Path, inputs: tuple[str, ...], trial: Inputs
) -> Parity:
    expected = [output.detach().resolve_conj().numpy() for output in subject.run(trial)]
    try:
        got = session.run(None, _feeds(inputs, trial))
    except Exception as error:
        node = re.search(r"running (\w+) node\. Name:'([^']*)'", str(error))
        module = module_of(path, node[2]) if node else ""
        where = f" in '{node[1]}' of module '{module}'" if node and module else ""
        raise ExportError(
            f"ONNX Runtime cannot run the exported file{where} at a batch of {batch_size(trial)}: "
            f"{first_sentence(error)}"
        ) from error
    return compare(expected, got)


def _feeds(names: tuple[str, ...], inputs: Inputs) -> dict[str, Array]:
    arrays = [np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in tensors(inputs)]
    return dict(zip(names, arrays, strict=True))


def _refuse_nan(outputs: tuple[Tensor, ...]) -> None:
    if any(bool(output.isnan().any()) for output in outputs):
        raise ModelError(
            "The model returns NaN on the example inputs, so there is nothing to compare an export with. "
            "Look for NaN in the weights (a training that diverged) or in the inputs."
        )
