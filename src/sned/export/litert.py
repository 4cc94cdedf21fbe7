"""LiteRT: converted by litert-torch, quantised by ai-edge-quantizer, run by the LiteRT interpreter with XNNPACK."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sned.devices.machine import simd
from sned.errors import ExportError
from sned.export.capture import Captured, first_sentence, quiet
from sned.export.litert_file import called, lay_shuffles, merge_means, text, write
from sned.export.parity import Array
from sned.export.target import DYNAMIC, FP16, FP32, INT8, NONE_SPARSE, Level, Order, Target

DEFAULT = "serving_default"
"""What the runtime calls the only signature of a file."""

_ROOT = "value"
"""What tensors of the model itself, and of none of its modules, are called."""

_METADATA = "sned.signatures"
"""Entry of the file's metadata: the order of inputs and outputs, and which inputs have their channels last."""


def _write(levels: Mapping[str, Captured], order: Order) -> tuple[str, ...]:
    with quiet():
        import litert_torch
        from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    last = {name: _images(level) if order.channels_last else () for name, level in levels.items()}
    converter = litert_torch.Converter()
    for name, level in levels.items():
        example = tuple(_enter(tensor, place in last[name]) for place, tensor in enumerate(level.example))
        converter.signature(name or DEFAULT, level.positional(_layout(last[name])), example)
    try:
        with quiet(), torch.no_grad(), TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.tflite"
            converter.convert().export(str(plain))
            model = flatbuffer.read_model(str(plain))
            _name(model, levels)
            if order.precision != FP32:
                flatbuffer.write_model(model, str(plain))
                model = coarser(plain, levels, order, last)
    except Exception as error:
        raise ExportError(_untranslated(error, levels)) from error
    merge_means(model)  # the quantiser reads every tensor, and what was in between is left without a value
    lay_shuffles(model)
    notes = finish(model, levels, order, last)
    images = any(last.values())
    return (*notes, *(("Images enter as [batch, height, width, channels].",) if images else ()))


def finish(
    model: Any, levels: Mapping[str, Level], order: Order, last: Mapping[str, Sequence[int]]
) -> tuple[str, ...]:
    """Write a converted model out: with zeros packed where that was asked, and with the order of its inputs."""
    notes = _sparse(model, order) if order.sparse else ()
    _remember(model, levels, last)
    write(model, order.path)
    return notes


def _sparse(model: Any, order: Order) -> tuple[str, ...]:
    from sned.export.litert_sparse import findings, sparsify

    packed = sparsify(model)
    if not packed and order.precision == FP16:
        return (
            "No weight is stored sparse: LiteRT has no sparse form of 16-bit floats. Leave 'fp16' out for it.",
        )
    if not packed:
        return (NONE_SPARSE, *(str(finding) for finding in findings(model)))
    before, after = (sum(getattr(entry, name) for entry in packed) for name in ("before", "after"))
    said = f"{len(packed)} weights are stored sparse: {before:,} bytes became {after:,}."
    here = ("This machine has AVX: times measured on it gain nothing.",) if "avx" in (simd() or ()) else ()
    return (TARGET.sparse, said, *here, *(str(finding) for finding in findings(model)))


def _images(level: Captured) -> tuple[int, ...]:
    """Places of the inputs that look like images, `[batch, channels, height, width]` of floats."""
    return tuple(
        place for place, tensor in enumerate(level.example) if tensor.ndim == 4 and tensor.is_floating_point()
    )


def _layout(last: Sequence[int]) -> Any:
    return lambda place, tensor: tensor.permute(0, 3, 1, 2) if place in last else tensor


def _enter(tensor: Tensor, channels_last: bool) -> Tensor:
    tensor = tensor.float() if tensor.dtype == torch.float16 else tensor
    return tensor.permute(0, 2, 3, 1).contiguous() if channels_last else tensor


def _name(model: Any, levels: Mapping[str, Captured]) -> None:
    """Give inputs, outputs and tensors the model's names; the converter numbers them, and writes whole class paths."""
    taken: Counter[str] = Counter()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            name = _module(tensor.name)
            taken[name] += 1
            tensor.name = name if taken[name] == 1 else f"{name};{taken[name]}"
    for signature in model.signatureDefs:
        key = (
            signature.signatureKey.decode()
            if isinstance(signature.signatureKey, bytes)
            else signature.signatureKey
        )
        level = levels[key if key in levels else ""]
        for maps, names in ((signature.inputs, level.inputs), (signature.outputs, level.outputs)):
            for entry in maps:
                entry.name = names[_number(entry.name)]


def _module(name: str | bytes) -> str:
    """ "head" of "sned.export.capture._Positional/…ConvNet_model/torch.nn.modules.linear.Linear_head;1"."""
    text = name.decode() if isinstance(name, bytes) else name
    first, *path = text.partition(";")[0].split("/")
    attributes = [part.rpartition(".")[2].partition("_")[2] for part in path]
    return ".".join(filter(None, attributes[1:])) or (_ROOT if path or "." in first else first)


def _number(name: str | bytes) -> int:
    """The number at the end of `args_0` or `output_0`."""
    text = name.decode() if isinstance(name, bytes) else name
    return int(text.rpartition("_")[2])


def coarser(plain: Path, levels: Mapping[str, Level], order: Order, last: Mapping[str, Sequence[int]]) -> Any:
    """The file at the precision asked for, by ai-edge-quantizer."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer
    from ai_edge_quantizer import quantizer, recipe

    attends = any(level.attends for level in levels.values())
    recipes = {INT8: partial(_static, attends), DYNAMIC: recipe.dynamic_wi8_afp32, FP16: _halves}
    made = quantizer.Quantizer(str(plain))
    made.load_quantization_recipe(recipes[order.precision]())
    try:
        ranges = (_ranges(plain, made, _samples(levels, order, last)),) if order.precision == INT8 else ()
        result = made.quantize(*ranges)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"ai-edge-quantizer cannot write this network in {order.precision}: {first_sentence(error)} It finds no "
            "ranges inside of loops, which LSTM and GRU layers of Keras become in LiteRT: ask for "
            f"`quantize={DYNAMIC!r}`, which needs none, or for another target."
        ) from error
    coarse = plain.with_name("coarse.tflite")
    result.export_model(str(coarse), overwrite=True)
    model = flatbuffer.read_model(str(coarse))
    _follow_ends(flatbuffer.read_model(str(plain)), model)
    return model


def _samples(
    levels: Mapping[str, Level], order: Order, last: Mapping[str, Sequence[int]]
) -> dict[str, list[dict[str, Array]]]:
    """The calibration inputs of each signature, by their names."""
    return {
        name or DEFAULT: [
            {
                key: _fed(array, place in last[name])
                for place, (key, array) in enumerate(zip(level.inputs, row, strict=True))
            }
            for row in order.samples(name)
        ]
        for name, level in levels.items()
    }


def _follow_ends(before: Any, model: Any) -> None:
    """Let signatures name what enters and leaves the graph.

    The quantiser widens an output that an operation reads in floats as well, and leaves its signature at what was there
    before, which the runtime does not hand out.
    """
    for old, new in zip(before.signatureDefs, model.signatureDefs, strict=True):
        was, now = before.subgraphs[old.subgraphIndex], model.subgraphs[new.subgraphIndex]
        for ends in ("inputs", "outputs"):
            places = [int(place) for place in getattr(was, ends)]
            for entry, told in zip(getattr(new, ends), getattr(old, ends), strict=True):
                entry.tensorIndex = int(getattr(now, ends)[places.index(int(told.tensorIndex))])


def _ranges(plain: Path, made: Any, samples: Mapping[str, Sequence[Mapping[str, Array]]]) -> Any:
    """The ranges of activations over all samples; the quantiser's own is a moving average, which clips."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    found = calibrator.Calibrator(str(plain), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    found.calibrate(samples, made._recipe_manager)
    return found.get_model_qsvs()


def _static(attends: bool) -> Any:
    """All that the runtime has in 8 bits; of a network with attention linear layers and convolutions alone.

    With the means and squares of its LayerNorms in 8 bits too, a small encoder was measured to be four times further
    off and three times slower. Tables are looked up in 8 bits, and what is found there leaves as floats: there is no
    other kernel.
    """
    from ai_edge_quantizer import qtyping, recipe_manager

    kinds = qtyping.TFLOperationName
    manager = recipe_manager.RecipeManager()
    for operation in (kinds.FULLY_CONNECTED, kinds.CONV_2D) if attends else (kinds.ALL_SUPPORTED,):
        manager.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
    manager.add_dynamic_config(".*", kinds.EMBEDDING_LOOKUP, 8)
    return manager.get_quantization_recipe()


def _halves() -> Any:
    """Weights in 16-bit floats; the runtime widens them, or computes in 16 bits where the CPU can."""
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, 16,
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )  # fmt: skip
    return manager.get_quantization_recipe()


def _untranslated(error: Exception, levels: Mapping[str, Captured]) -> str:
    origin = next(filter(None, (level.origin(error) for level in levels.values())), "")
    reason = f"{origin} has no LiteRT translation." if origin else first_sentence(error)
    return (
        f"The model cannot be written for LiteRT: {reason} "
        "Replace that operation, or export the part of the model before it."
    )


def _fed(array: Array, channels_last: bool) -> Array:
    """An array as the file takes it: 32-bit numbers for other floats and for long integers, images channels last."""
    moved = array.transpose(0, 2, 3, 1) if channels_last else array
    return np.asarray(moved, dtype=_TAKEN.get(array.dtype.name, array.dtype), order="C")


_TAKEN = {"int64": np.int32, "float64": np.float32, "float16": np.float32}


def _remember(model: Any, levels: Mapping[str, Level], last: Mapping[str, Sequence[int]]) -> None:
    """Write into the file's metadata in which order tensors enter and leave, and which have their channels last."""
    from ai_edge_litert import schema_py_generated as schema

    told = {
        name or DEFAULT: {"inputs": level.inputs, "outputs": level.outputs, "channels_last": list(last[name])}
        for name, level in levels.items()
    }
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(json.dumps(told).encode(), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]


def _remembered(path: Path, signature: str) -> dict[str, list[Any]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    entries = [model.Metadata(place) for place in range(model.MetadataLength())]
    found = next((entry for entry in entries if entry.Name() == _METADATA.encode()), None)
    if found is None:
        raise ExportError(
            f"'{path}' was not written by sned: it does not say in which order its inputs come."
        )
    told: dict[str, dict[str, list[Any]]] = json.loads(model.Buffers(found.Buffer()).DataAsNumpy().tobytes())
    return told[signature]


class LiteRtSession:
    """A signature of a file in the LiteRT interpreter, with XNNPACK as it is by default."""

    def __init__(self, path: Path, level: str, threads: int) -> None:
        with quiet():
            from ai_edge_litert.interpreter import Interpreter

        told = _remembered(path, level or DEFAULT)
        try:
            with quiet():
                self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
                self.interpreter.allocate_tensors()
                self.runner = self.interpreter.get_signature_runner(level or DEFAULT)
        except (RuntimeError, ValueError) as error:
            reason = _without_kernel(path, str(error)) or first_sentence(error)
            raise ExportError(f"LiteRT cannot open the exported file: {reason}") from error
        self.last = frozenset(told["channels_last"])
        entering, leaving = self.runner.get_input_details(), self.runner.get_output_details()
        self.inputs = [(name, entering[name]) for name in told["inputs"]]
        self.outputs = [(name, leaving[name]) for name in told["outputs"]]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; raises `ExportError` with what the runtime says."""
        fed = {
            name: _quantised(_fed(array, place in self.last), detail)
            for place, ((name, detail), array) in enumerate(zip(self.inputs, inputs, strict=True))
        }
        try:
            got = self.runner(**fed)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"LiteRT cannot run the exported file: {first_sentence(error)}") from error
        return [_widened(got[name], detail) for name, detail in self.outputs]


def _without_kernel(path: Path, told: str) -> str:
    """The operation that the runtime does not know, and the module that it stands in; empty where it is not that."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    found = re.search(r"op for builtin opcode '(\w+)'", told)
    if found is None:
        return ""
    model = flatbuffer.read_model(str(path))
    operators = [(graph, op) for graph in model.subgraphs for op in graph.operators]
    tensor = next(
        (graph.tensors[op.outputs[0]] for graph, op in operators if called(model, op) == found[1]), None
    )
    name = text(tensor.name) if tensor is not None else _ROOT
    where = f" in module '{name.partition(';')[0]}'" if not name.startswith(_ROOT) else ""
    return f"it has no kernel for {found[1]}{where}. Replace that operation, or export the part before it."


def _quantised(array: Array, detail: Mapping[str, Any]) -> Array:
    """Real numbers as an int8 input takes them; anything else in the input's own type."""
    scale, zero = detail["quantization"]
    if not scale or not np.issubdtype(array.dtype, np.floating):
        return array.astype(detail["dtype"], copy=False)
    bounds = np.iinfo(detail["dtype"])
    stepped: Array = np.clip(np.round(array / scale) + zero, bounds.min, bounds.max).astype(detail["dtype"])
    return stepped


def _widened(array: Array, detail: Mapping[str, Any]) -> Array:
    """What an int8 output means."""
    scale, zero = detail["quantization"]
    return ((array.astype(np.float32) - zero) * scale).astype(np.float32) if scale else array


TARGET = Target(
    name="litert",
    title="LiteRT",
    suffix=".tflite",
    modules=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    extra="litert",
    precisions=(FP32, FP16, INT8, DYNAMIC),
    write=_write,
    read=LiteRtSession,
    levels="signatures",
    wide=(FP32, FP16, INT8, DYNAMIC),
    options=("channels_last",),
    sparse=(
        "Zeros of 1×1 convolutions and of linear layers are left out of the file, which gets smaller everywhere. "
        "XNNPACK multiplies without them on ARM and on x86 without AVX; with AVX the weights are filled in again."
    ),
)
