"""OpenVINO: converted by its own front end, quantised by NNCF, run on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind, TensorArgument

from sned.errors import ExportError
from sned.export.capture import Captured, first_sentence, quiet
from sned.export.openvino_file import compact
from sned.export.parity import Array
from sned.export.target import FP16, FP32, INT8, Order, Target

SPARSE_FROM = 0.5
"""Share of zeros in the weights of a linear layer from which it is unpacked on the fly; 0.5 and 0.7 measured alike."""


def _write(levels: Mapping[str, Captured], order: Order) -> tuple[str, ...]:
    import openvino

    [(name, level)] = levels.items()
    try:
        with quiet(), torch.no_grad():
            model = openvino.convert_model(level.program)
            _pin(model, level)
            if order.precision == INT8:
                model = _quantised(model, level, order.samples(name))
            openvino.save_model(model, order.path, compress_to_fp16=order.precision == FP16)
            if order.precision == INT8:
                compact(order.path)
    except Exception as error:
        origin = level.origin(error)
        reason = f"{origin} has no OpenVINO translation." if origin else first_sentence(error)
        raise ExportError(
            f"The model cannot be written for OpenVINO: {reason} "
            "Replace that operation, or export the part of the model before it."
        ) from error
    return (TARGET.sparse,) if order.sparse else ()


def _pin(model: Any, level: Captured) -> None:
    """Give inputs their names and sizes: the front end leaves more of them open than the batch, and misnames those in
    containers."""
    specs = level.program.graph_signature.input_specs
    entering = [spec.arg for spec in specs if spec.kind == InputKind.USER_INPUT]
    for port, argument in zip(model.inputs, entering, strict=True):
        if not isinstance(argument, TensorArgument):  # None, or a flag: recorded as it was
            model.remove_parameter(port.get_node())
    shapes = {}
    for port, tensor, name, grows in zip(
        model.inputs, level.example, level.inputs, level.batched, strict=True
    ):
        open_batch = level.dynamic_batch and grows
        shapes[port] = [-1 if open_batch and not axis else size for axis, size in enumerate(tensor.shape)]
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, level.outputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape(shapes)


def _quantised(model: Any, level: Captured, samples: Sequence[Sequence[Array]]) -> Any:
    """8-bit weights and activations, biases corrected, as NNCF does it, but for the ranges of activations.

    They hold all that was seen: NNCF takes the mean of the limits of each row, which cuts off features with rare large
    values. Without SmoothQuant: it is meant for the outliers of large language models, and on encoders it was found to
    raise the error tenfold.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.CRITICAL)
    advanced = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )
    rows = [dict(zip(level.inputs, row, strict=True)) for row in samples]
    return nncf.quantize(
        model,
        nncf.Dataset(rows),
        subset_size=max(1, len(rows)),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if level.attends else None,
        advanced_parameters=advanced,
    )


class OpenVinoSession:
    """A file in OpenVINO's runtime on the CPU, computing in 32 bits where the file does not say 8."""

    def __init__(self, path: Path, level: str, threads: int) -> None:
        del level  # there is one
        import openvino
        import openvino.properties.intel_cpu as cpu

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
            cpu.sparse_weights_decompression_rate(): SPARSE_FROM,
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            self.kinds = [port.element_type.to_dtype() for port in model.inputs]
            self.request = core.compile_model(model, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot open the exported file: {first_sentence(error)}") from error
        self.places = range(len(model.outputs))

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; raises `ExportError` with what the runtime says."""
        fed = [np.asarray(array, kind, order="C") for array, kind in zip(inputs, self.kinds, strict=True)]
        try:
            got = self.request.infer(fed)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot run the exported file: {first_sentence(error)}") from error
        return [np.array(got[place]) for place in self.places]


TARGET = Target(
    name="openvino",
    title="OpenVINO",
    suffix=".xml",
    modules=("openvino", "nncf"),
    extra="openvino",
    precisions=(FP32, FP16, INT8),
    write=_write,
    read=OpenVinoSession,
    dynamic_batch=True,
    mends_biases=True,
    sparse=(
        "The file keeps its zeros. With int8, on x86 with AMX, linear layers unpack sparse weights on the fly when the "
        "model is compiled with CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE; elsewhere zeros gain nothing."
    ),
)
