"""The road of an export: what was asked for is checked and made ready, tried at any batch size, then at one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sned.calibration.inputs import read_inputs
from sned.errors import ExportError, ModelError, UserError
from sned.evaluation import Evaluate, evaluated
from sned.export.attempt import Job, attempt
from sned.export.biases import compensated
from sned.export.capture import Subject, in_kind
from sned.export.checks import (
    check_example,
    check_models,
    check_numbers,
    check_options,
    default_tolerance,
    path_for,
    refuse_nan,
    refuse_open_batch,
    sparse_form,
)
from sned.export.exported import Exported
from sned.export.structure import arrays, at_batch, batched, fresh
from sned.export.target import (
    FP16,
    FP32,
    INT8,
    KERAS_ONLY,
    TARGETS,
    Order,
    Source,
    Target,
    find_target,
    require,
)
from sned.graph.example import Inputs, describe
from sned.surgery.keras import is_keras_model
from sned.surgery.parametrisations import folded
from sned.timing import SETTLE_MS, interleaved

SAMPLES = 256
"""Calibration inputs that are read, at most."""

_WIDENED = (
    "Written in 32-bit floats: few runtimes compute in those of the model; `quantize` makes the file small."
)


def export(
    model: Any,
    example_inputs: Inputs,
    *,
    out: str | Path,
    to: str = "onnx",
    quantize: str | None = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    sparse: bool | None = None,
    repair_biases: bool = True,
    tolerance: float | None = None,
    opset: int | None = None,
    system: str | None = None,
    channels_last: bool = True,
    dynamic_batch: bool | None = None,
    runs: int = 50,
    threads: int = 1,
    seed: int = 0,
) -> Exported:
    """Write a model as the file of a runtime, read that back, and prove that it computes the same.

    The file is compared with PyTorch on the example, on fresh inputs and on calibration inputs; it gets its name
    only after that, so that a file that is there is a file that agrees.

    A Keras model is compared with itself on its own backend. SavedModel, and LiteRT where TensorFlow is installed, are
    written by Keras's own exporter (in a process under TensorFlow where the backend is another), all else from the
    ops that were recorded; the file is timed alone.

    Args:
        model: any module, or a Keras 3 model; it is copied, exported in evaluation mode and left as it was. Masks
            that it holds are burnt into the copy, and parametrisations of weights folded.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; a tensor whose first axis
            is as long as the first tensor's is taken to have the batch there. For a Keras model what `predict` takes.
        out: the file to write; for "coreml" a folder, `NAME.mlpackage`; for "openvino" an `.xml` with its `.bin`;
            for "savedmodel" a folder.
        to: "onnx", "litert", "coreml", "executorch" or "openvino"; for a Keras model also "savedmodel".
        quantize: "int8" (8-bit weights per channel; activations calibrated where the runtime has it),
            "int8-dynamic" (for transformers), "fp16", or None for 32-bit floats.
        calibration: batches of inputs without labels, a hundred inputs or more, for "int8"; random ones when
            None. They are compared on too.
        evaluate: the user's measure of a network; it is asked about the model and about the file (of a Keras model
            as a `keras.Model`).
        sparse: write zeros in the form that the runtime gains from; None: where at least 30 % of the weights are
            zero and the runtime gains.
        repair_biases: for int8, move the biases by what the rounding of the weights shifts each channel.
        tolerance: how far an element may be off, as a fraction of the largest magnitude in its output; None for
            1e-4 in fp32, and for others a bound on the relative error of all outputs (`ERRORS`).
        opset: version of the ONNX operators, 18 or newer; None for the exporter's default.
        system: oldest system that must take the file: "iOS15" to "iOS18" for Core ML.
        channels_last: LiteRT: images enter as `[batch, height, width, channels]`, as Android has them.
        dynamic_batch: whether the file takes batches of any size; None: where the runtime and the model allow it.
        runs: interleaved runs to time the file and PyTorch with; 0 to time nothing.
        threads: inside an operator, for timing.
        seed: of fresh inputs.

    Returns:
        Where the file is, how well it agrees, how large and how fast it is.

    Raises:
        UserError: an unknown target, or one that has not what was asked.
        ModelError: the model does not run on the example, or returns NaN.
        ExportError: the runtime's package is missing, an operation cannot be exported (named, with its module),
            or the outputs disagree.
        WriteError: the disk is full or the folder is not writable.

    Example:
        exported = sned.export(model, torch.randn(1, 3, 224, 224), to="litert", quantize="int8",
                               calibration=batches, out="model.tflite")
        exported.max_abs_diff, exported.size_bytes, exported.latency
    """
    check_models({"": model})
    check_numbers(runs=runs, threads=threads)
    told: float | None = None
    if evaluate is not None:  # which may take long, or fail
        path_for(out, find_target(to))
        told = evaluated(model, evaluate)
    made = export_levels(
        {"": model},
        example_inputs,
        out=out,
        to=to,
        quantize=quantize,
        calibration=calibration,
        sparse=sparse,
        repair_biases=repair_biases,
        tolerance=tolerance,
        opset=opset,
        system=system,
        channels_last=channels_last,
        dynamic_batch=dynamic_batch,
        seed=seed,
    )[""]
    file: Callable[[], Any] = made.module
    if is_keras_model(model):
        from sned.export.keras import KerasFile, inputs_of

        example_inputs = inputs_of(example_inputs)
        file = partial(KerasFile, made, model, example_inputs)
    if runs:
        made = _timed(made, model, example_inputs, runs=runs, threads=threads)
    if evaluate is not None:
        made = replace(made, accuracy=evaluated(file(), evaluate), torch_accuracy=told)
    return made


def export_levels(
    models: Mapping[str, Any],
    example_inputs: Inputs,
    *,
    out: str | Path,
    to: str = "executorch",
    quantize: str | None = None,
    calibration: Iterable[Any] | None = None,
    sparse: bool | None = None,
    repair_biases: bool = True,
    tolerance: float | None = None,
    opset: int | None = None,
    system: str | None = None,
    channels_last: bool = True,
    dynamic_batch: bool | None = None,
    seed: int = 0,
) -> dict[str, Exported]:
    """Write several networks that take the same inputs into one file, in which equal weights are kept once.

    ExecuTorch has them as methods, LiteRT as signatures, Core ML as functions, each by the name given here. Weights
    are shared where two networks hold the same tensor; a slice of a larger one is another tensor.

    Args:
        models: name → network; one alone may be called "".
        example_inputs: as for `export`, and so are the others.

    Returns:
        For each name its `Exported`; all have the same path and size.

    Raises:
        UserError: names that are not words, or a runtime that cannot share weights; else as `export`.

    Example:
        levels = sned.export.export_levels({"fast": small, "good": large}, x, to="executorch", out="model.pte")
        levels["fast"].module()(x)
    """
    check_models(models)
    check_numbers(tolerance=tolerance)
    theirs = [is_keras_model(model) for model in models.values()]
    if to in KERAS_ONLY and not all(theirs):
        raise UserError(f"{to!r} is written of Keras models alone. Write to one of {', '.join(TARGETS)}.")
    target, precision = find_target(to), quantize or FP32
    if any(theirs):
        from sned.export import keras

        target = keras.target_for(target)
    check_options(
        target, {"opset": opset is not None, "system": system is not None, "channels_last": not channels_last}
    )
    require(target, precision, len(models))
    if dynamic_batch:
        refuse_open_batch(target)
    path = path_for(out, target)
    subjects: Mapping[str, Source]
    remarks: tuple[str, ...] = ()
    if any(theirs):
        calibration = keras.calibration_of(calibration, example_inputs)
        subjects = keras.subjects(models, example_inputs, target)
        models = {name: subject.module for name, subject in subjects.items()}
        remarks = keras.remarks(models)
        example_inputs = keras.inputs_of(example_inputs)
    else:
        subjects = {name: Subject(model) for name, model in models.items()}
    check_example(example_inputs)
    for subject in subjects.values():
        refuse_nan(subject.run(example_inputs))
    batches, notes = _calibration(example_inputs, calibration, precision, seed)
    plain, widened = (models, ()) if any(theirs) else _plain(models, target, precision)
    same = all(plain[name] is model for name, model in models.items())
    written: Mapping[str, Source] = subjects if same else {name: Subject(plain[name]) for name in plain}
    notes = (*notes, *widened)
    mends = repair_biases and not any(theirs) and not target.mends_biases
    if mends and precision == INT8 and calibration is not None:
        written = {name: Subject(compensated(model, batches)) for name, model in plain.items()}
        notes = (*notes, "Biases answer for the rounding of the weights.")
    if precision == FP16 and target.halves:
        written = {name: Subject(model, halves=True) for name, model in plain.items()}
    sparse, said = sparse_form(target, sparse, [subject.module for subject in written.values()])
    order = Order(path, precision, None, sparse, opset, system, channels_last)
    allowed = default_tolerance(models.values()) if tolerance is None and precision == FP32 else tolerance
    job = Job(target, precision, subjects, written, example_inputs, batches, path, allowed, order, seed,
              (*notes, *said, *remarks))  # fmt: skip
    if not target.dynamic_batch:
        return attempt(job, dynamic=False, because=f"{target.title} files are written for one batch size.")
    if dynamic_batch is False:
        return attempt(job, dynamic=False, because="That is what was asked for.")
    try:
        return attempt(job, dynamic=True)
    except (ExportError, ModelError) as error:
        if dynamic_batch:
            raise type(error)(f"{error} Leave out `dynamic_batch` for a file of one batch size.") from error
        reason = str(error)
    return attempt(job, dynamic=False, because=reason)


def _plain(
    models: Mapping[str, Any], target: Target, precision: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The networks as they are written, themselves where they are plain already, and what there is to say of it."""
    kind = torch.float16 if precision == FP16 and target.halves else torch.float32
    coarse = frozenset({torch.bfloat16, *([torch.float16] if precision in target.wide else [])})
    folds = {name: folded(model) for name, model in models.items()}
    plain = {name: in_kind(model, kind, coarse) for name, model in folds.items()}
    widened = precision == FP32 and any(plain[name] is not model for name, model in folds.items())
    return plain, (_WIDENED,) if widened else ()


def _calibration(
    example: Inputs, batches: Iterable[Any] | None, precision: str, seed: int
) -> tuple[tuple[Inputs, ...], tuple[str, ...]]:
    if batches is not None:
        kept = read_inputs(describe(example), batches, SAMPLES, None)
        return tuple(kept.batches(64, 0, len(kept))), ()
    if precision != INT8:
        return (), ()
    made = tuple(fresh(example, 16, seed=seed + number) for number in range(2))
    return made, ("Calibrated on random inputs: give `calibration` for ranges that fit real ones.",)


def _timed(made: Exported, model: Any, example: Inputs, *, runs: int, threads: int) -> Exported:
    """One row of the file's batch, in its runtime and, of a module, in PyTorch, turn and turn about."""
    target = find_target(made.target)
    if not target.here or not target.threads:
        return made
    inputs = at_batch(example, made.batch, batched(example))
    session, before = made.session(threads=threads), torch.get_num_threads()
    calls: dict[str, Callable[[], object]] = {"file": partial(session.run, arrays(inputs))}
    if not is_keras_model(model):
        calls["torch"] = partial(Subject(model).run, inputs)
    torch.set_num_threads(threads)
    try:
        timed = interleaved(calls, runs=runs, threads=threads, settle_ms=SETTLE_MS, max_seconds=10.0)
    finally:
        torch.set_num_threads(before)
    return replace(made, latency=timed["file"], torch_latency=timed.get("torch"))
