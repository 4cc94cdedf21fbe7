"""Keras models: SavedModel and LiteRT by Keras's own exporter under TensorFlow; all else from their recorded ops.

Every file is compared with the model itself, on the backend in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
from torch import Tensor

from sned.errors import ExportError, ModelError
from sned.export.capture import Subject, first_sentence, quiet, shapes
from sned.export.exported import Exported
from sned.export.litert import TARGET as LITERT
from sned.export.litert import coarser, finish
from sned.export.parity import Array
from sned.export.target import FP32, Level, Order, Target
from sned.graph.example import Example, Inputs, Leaf, arguments, describe, tensors_in
from sned.surgery.keras.arrays import to_array, to_tensor
from sned.surgery.keras.client import asked
from sned.surgery.keras.naming import layers_of
from sned.surgery.keras.network import Network
from sned.surgery.keras.precision import in_single_precision, mixed, refuse_bfloat16
from sned.surgery.keras.rebuild import answers
from sned.surgery.keras.road import calibration_of, inputs_of, network_for, recorded_network

__all__ = ["KerasFile", "calibration_of", "inputs_of", "remarks", "subjects", "target_for", "write"]

ORDER = "sned.json"
"""The file among a SavedModel's extra assets that holds the order of its inputs; a signature has only their names."""


@dataclass(frozen=True)
class KerasLevel:
    """A model as Keras's exporter is asked for it; see `sned.export.target.Level`.

    Attributes:
        model: the Keras model.
        described: what its inputs look like.
        dynamic_batch: whether the batch is left open.
    """

    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    described: Example
    dynamic_batch: bool

    @property
    def attends(self) -> bool:
        """Whether it has attention."""
        return any("Attention" in type(layer).__name__ for layer in layers_of(self.model).values())

    def write(self, path: Path, form: str) -> None:
        """Have Keras write it, in a process under TensorFlow where this is none.

        Raises:
            ExportError: the exporter failed.
        """
        what = (str(path), form, self.described, self.inputs, self.dynamic_batch)
        try:
            with quiet():
                if keras.backend.backend() == "tensorflow":
                    write(self.model, *what)
                else:
                    asked("tensorflow", f"{__name__}:write", self.model, *what)
        except Exception as error:
            raise ExportError(
                f"Keras cannot export the model as {form}: {first_sentence(error)} Only ops of `keras.ops` and layers "
                "of Keras run under every backend."
            ) from error


def write(model: Any, path: str, form: str, example: Example, names: Sequence[str], dynamic: bool) -> None:
    """Write a model by Keras's own exporter, under TensorFlow.

    Args:
        model: what to write.
        path: of the file or folder.
        form: "litert" or "tf_saved_model".
        example: what its inputs look like.
        names: what they are called in the file, in order.
        dynamic: whether the batch is left open.
    """
    left = iter(names)

    def specified(leaf: Leaf) -> Any:
        batched = dynamic and leaf.shape and leaf.shape[0] == example.batch
        shape = (None, *leaf.shape[1:]) if batched else leaf.shape
        return keras.InputSpec(shape=shape, dtype=leaf.dtype, name=next(left))

    args, _ = example.build(specified)
    with in_single_precision(model):
        model.export(path, format=form, verbose=False, input_signature=[*args])


class KerasSubject:
    """A Keras model as what is exported and compared with.

    Args:
        network: it, with its tensors.
        own: whether Keras's exporter writes it.
    """

    def __init__(self, network: Network, *, own: bool) -> None:
        self.model, self.module, self.own = network.keras, network, own

    def run(self, example: Inputs) -> tuple[Tensor, ...]:
        """What the model answers on its backend.

        Raises:
            ModelError: it does not run on such inputs.
        """
        try:
            found = answers(self.model, _given(example))
        except Exception as error:
            raise ModelError(
                f"The model does not run on inputs of shape {shapes(example)}: {first_sentence(error)} "
                "Give example inputs that the model takes."
            ) from error
        return tuple(to_tensor(value).detach().cpu() for value in keras.tree.flatten(found))

    def capture(self, example: Inputs, *, dynamic_batch: bool) -> Level:
        """The model as Keras's exporter takes it, or recorded by `torch.export` for other exporters."""
        if not self.own:
            return Subject(self.module).capture(example, dynamic_batch=dynamic_batch)
        answer = answers(self.model, _given(example))
        inputs = self.module.input_names(len(tensors_in(example)))
        return KerasLevel(
            self.model,
            inputs,
            _output_names(answer),
            tuple(tensors_in(example)),
            describe(example),
            dynamic_batch,
        )


class KerasFile(keras.Model):  # type: ignore[misc]
    """A file as a Keras model: `predict`, `evaluate` and a call ask the file; there is nothing to train.

    Args:
        exported: the file.
        like: the model that was exported; its compile settings are taken over.
        example: its inputs, as positional arguments.
    """

    def __init__(self, exported: Exported, like: Any, example: Inputs) -> None:
        super().__init__(name=like.name)
        self._ask = exported.module().forward
        self._nest = answers(like, _given(example))
        # Behind a function, lest its layers count as this model's.
        self._shapes: Callable[[Any], Any] = lambda inputs: like(inputs)
        if settings := like.get_compile_config():
            self.compile_from_config(settings)
        self.run_eagerly = True
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the file answers."""
        del training
        if any(map(_abstract, keras.tree.flatten(inputs))):  # JAX asks for shapes before it runs anything
            return self._shapes(inputs)
        got = self._ask(keras.tree.map_structure(to_tensor, inputs))
        flat = [keras.ops.convert_to_tensor(t.numpy()) for t in (got if isinstance(got, tuple) else (got,))]
        return keras.tree.pack_sequence_as(self._nest, flat)


def subjects(models: Mapping[str, Any], example_inputs: Inputs, target: Target) -> dict[str, KerasSubject]:
    """The models as what is exported and compared with; recorded where Keras's own exporter is not asked.

    Raises:
        ExampleError, ModelError: the model does not run on the example inputs, or has variables in bfloat16.
    """
    for model in models.values():
        refuse_bfloat16(model)
    own = target.write in (_write_litert, _write_saved_model)
    made = network_for if own else recorded_network
    return {name: KerasSubject(made(model, example_inputs), own=own) for name, model in models.items()}


def remarks(models: Mapping[str, Any]) -> tuple[str, ...]:
    """What is said of models of mixed precision."""
    found = sorted({layer.compute_dtype for network in models.values() for layer in mixed(network.keras)})
    if not found:
        return ()
    return (
        f"The model computes in {' and '.join(found)}; the file does in float32, and was compared in it.",
    )


def target_for(target: Target) -> Target:
    """The target as Keras models have it: LiteRT by Keras's exporter where there is TensorFlow."""
    return _LITERT if target.name == LITERT.name and find_spec("tensorflow") is not None else target


def _abstract(value: Any) -> bool:
    """Whether a tensor stands for a shape alone, as JAX's tracers do."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return isinstance(value, jax.core.Tracer)


def _given(example: Inputs) -> Any:
    """Inputs on the backend in use, as positional arguments."""
    args, _ = arguments(example)
    return keras.tree.map_structure(lambda t: keras.ops.convert_to_tensor(to_array(t)), args)


def _output_names(answer: Any) -> tuple[str, ...]:
    if isinstance(answer, dict) and not any(
        isinstance(value, dict | list | tuple) for value in answer.values()
    ):
        return tuple(sorted(answer))
    return tuple(f"output_{place}" for place in range(len(keras.tree.flatten(answer))))


def _write_litert(levels: Mapping[str, Any], order: Order) -> tuple[str, ...]:
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    last: dict[str, Sequence[int]] = dict.fromkeys(levels, ())
    [level] = levels.values()
    with quiet(), TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tflite"
        level.write(plain, "litert")
        model = (
            flatbuffer.read_model(str(plain))
            if order.precision == FP32
            else coarser(plain, levels, order, last)
        )
    return finish(model, levels, order, last)


def _write_saved_model(levels: Mapping[str, Any], order: Order) -> tuple[str, ...]:
    [level] = levels.values()
    level.write(order.path, "tf_saved_model")
    extra = order.path / "assets.extra"
    extra.mkdir()
    (extra / ORDER).write_text(json.dumps({"inputs": level.inputs}))
    return ()


class SavedModelSession:
    """A SavedModel in TensorFlow."""

    def __init__(self, path: Path) -> None:
        import tensorflow

        told = path / "assets.extra" / ORDER
        if not told.is_file():
            raise ExportError(
                f"'{path}' was not written by sned: it does not say in which order its inputs come."
            )
        self.inputs: list[str] = json.loads(told.read_text())["inputs"]
        self._loaded = tensorflow.saved_model.load(str(path))
        self._function = self._loaded.signatures["serving_default"]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; raises `ExportError` with what TensorFlow says."""
        import tensorflow

        fed = {name: tensorflow.constant(a) for name, a in zip(self.inputs, inputs, strict=True)}
        try:
            got = self._function(**fed)
        except (tensorflow.errors.OpError, ValueError, TypeError) as error:
            raise ExportError(f"TensorFlow cannot run the SavedModel: {first_sentence(error)}") from error
        return [np.asarray(got[name]) for name in sorted(got, key=_by_number)]


def _by_number(name: str) -> tuple[str, int]:
    """Puts "output_2" before "output_10"."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem == "output" and number.isdecimal() else (name, 0)


def _read(path: Path, level: str, threads: int) -> SavedModelSession:
    del level, threads  # there is one, and TensorFlow has one number of threads for a process
    return SavedModelSession(path)


_LITERT = replace(
    LITERT,
    modules=("tensorflow", "ai_edge_litert", "ai_edge_quantizer"),
    extra="tensorflow",
    write=_write_litert,
    levels="",
    options=(),
)

TARGET = Target(
    name="savedmodel",
    title="TensorFlow SavedModel",
    suffix="",
    modules=("tensorflow",),
    extra="tensorflow",
    precisions=(FP32,),
    write=_write_saved_model,
    read=_read,
    dynamic_batch=True,
    threads=False,
)
