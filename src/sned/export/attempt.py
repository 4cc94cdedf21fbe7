"""One try at a file: record, write, read back, compare; the file gets its name last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sned.errors import ExportError
from sned.export.calls import call_of, row_axes
from sned.export.checks import default_tolerance
from sned.export.exported import Exported
from sned.export.parity import Parity, compare_runs
from sned.export.structure import arrays, batched, fresh, in_parts
from sned.export.target import DYNAMIC, FP16, FP32, INT8, Order, Source, Target
from sned.files import size_of, staged_path
from sned.graph.example import Inputs, batch_in

ERRORS: Mapping[str, float] = {FP16: 0.05, INT8: 0.5, DYNAMIC: 0.5}
"""Relative error at which a coarser file is refused: the answers are lost, whatever they are used for."""

_FRESH_BATCHES = (1, 3)


@dataclass(frozen=True)
class Job:
    """One export as asked for; the subjects are what is compared with."""

    target: Target
    precision: str
    subjects: Mapping[str, Source]
    written: Mapping[str, Source]
    example: Inputs
    calibration: tuple[Inputs, ...]
    path: Path
    tolerance: float | None
    order: Order
    seed: int
    notes: tuple[str, ...] = ()


def attempt(job: Job, *, dynamic: bool, because: str = "") -> dict[str, Exported]:
    """Write the file, read it back, and compare each level with its network.

    Args:
        job: what was asked for.
        dynamic: whether the file takes any number of rows; else as many as the example.
        because: why it does not.

    Returns:
        What was written, by level.

    Raises:
        ExportError: it could not be written, or does not compute what its network computes; nothing is left then.
        ModelError: a network does not run at another number of rows.
    """
    captured = {
        name: subject.capture(job.example, dynamic_batch=dynamic) for name, subject in job.written.items()
    }
    batch = batch_in(job.example)
    size, which = None if dynamic else batch, batched(job.example)
    parts = [part for inputs in job.calibration for part in in_parts(inputs, size, which)]
    samples = {name: [arrays(part) for part in parts] for name in captured}
    with staged_path(job.path) as staged:
        said = job.target.write(captured, replace(job.order, path=staged, calibration=samples))
        parities = {name: _verified(job, staged, name, dynamic=dynamic) for name in captured}
        size = size_of(staged) if staged.is_dir() else sum(size_of(file) for file in staged.parent.iterdir())
        version = _opset(staged) if job.target.name == "onnx" else None
    drawn = {batch, *_FRESH_BATCHES} if job.precision != INT8 else {*map(batch_in, job.calibration)}
    return {
        name: Exported(
            path=job.path,
            size_bytes=size,
            inputs=level.inputs,
            outputs=level.outputs,
            dynamic_batch=dynamic,
            static_because=because,
            parity=parities[name],
            batches=tuple(sorted(drawn if dynamic else {batch})),
            opset=version,
            target=job.target.name,
            precision=job.precision,
            level=name,
            batch=batch,
            call=call_of(job.subjects[name], job.example, None if dynamic else _row_axes(job, name)),
            notes=(*said, *job.notes),
        )
        for name, level in captured.items()
    }


def _row_axes(job: Job, level: str) -> tuple[int | None, ...] | None:
    subject = job.subjects[level]
    return row_axes(subject, job.example, max(job.tolerance or 0.0, default_tolerance([subject.module])))


def _verified(job: Job, path: Path, level: str, *, dynamic: bool) -> Parity:
    """Compare a level of the file with its network on the example, on fresh and on calibration inputs.

    Where the ranges of activations were found on calibration inputs, only those say what was lost.
    """
    session = job.target.read(path, level, 1)
    own = batch_in(job.example)
    sizes = _FRESH_BATCHES if dynamic else (own,)
    drawn = [job.example, *(fresh(job.example, size, seed=job.seed + size) for size in sizes)]
    trials = [*job.calibration] if job.precision == INT8 else [*drawn, *job.calibration]
    batch = None if dynamic else own
    which = batched(job.example)
    subject = job.subjects[level]
    # Both see the same rows together, at the batch that the file takes: an output may come from all of them.
    parts = [part for trial in trials for part in in_parts(trial, batch, which)]
    parity = compare_runs((arrays(subject.run(part)), session.run(arrays(part))) for part in parts)
    if job.tolerance is not None:
        agrees, limit = parity.within(job.tolerance), f"{job.tolerance:g} is allowed"
    else:
        agrees = parity.error <= ERRORS[job.precision]
        limit = f"a relative error of {ERRORS[job.precision]:g} in all is allowed, got {parity.error:.3g}"
    if not agrees:
        raise ExportError(
            f"The {job.precision if job.precision != FP32 else 'exported'} file does not compute what the model "
            f"computes: outputs differ by up to "
            f"{parity.max_abs_diff:.3g} ({parity.max_rel_diff:.3g} of the largest), where {limit}. "
            f"The file was not kept. {_advice(job.precision, job.target)}"
        )
    return parity


def _advice(precision: str, target: Target) -> str:
    if precision == FP32:
        return (
            "If the model draws random numbers in evaluation mode, make it repeatable; "
            "if this is only rounding, allow it with `tolerance`."
        )
    if precision == FP16:
        return "Values beyond 65,504 do not fit into 16 bits: scale them, or export in 32."
    if precision == INT8 and DYNAMIC in target.precisions:
        return (
            "Give a few hundred real calibration inputs, or use 'int8-dynamic' (for transformers) or 'fp16'."
        )
    return "Give a few hundred real calibration inputs, or use 'fp16'."


def _opset(path: Path) -> int:
    from sned.export.onnx_file import opset

    return opset(path)
