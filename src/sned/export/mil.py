"""A saved Core ML program evaluated from its own graph and weights: what Apple's runtime would be given, in PyTorch.

The values of an fp16 program are rounded to fp16 after each operation, so that overflows show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sned.errors import ExportError
from sned.export.mil_operations import KINDS, OPERATIONS
from sned.export.parity import Array


class Program:
    """A function of a package.

    Args:
        path: of the `.mlpackage`.
        function: its name, "main" where there is one.

    Raises:
        ExportError: it holds an operation that is not known here.
    """

    def __init__(self, path: Path, function: str) -> None:
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(
            spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir
        )
        self.function = program.functions[function]
        found = next((f for f in spec.description.functions if f.name == function), spec.description)
        self.inputs = [value.name for value in found.input]
        unknown = {op.op_type for op in self._operations()} - OPERATIONS.keys()
        if unknown:
            raise ExportError(
                f"The Core ML program holds {', '.join(sorted(unknown))}, which sned cannot evaluate, so it cannot "
                "be checked here. Please report the operation."
            )
        self.weights = self._unpacked()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for inputs in the order of the model's tensors."""
        values = dict(self.weights)
        for name, array in zip(self.inputs, inputs, strict=True):
            variable = self.function.inputs[name]
            values[variable.name] = _typed(torch.from_numpy(array), variable)
        with torch.no_grad():
            for op in self._operations():
                arguments = {key: _value(given, values) for key, given in op.inputs.items()}
                made = OPERATIONS[op.op_type](arguments)
                made = made if isinstance(made, list | tuple) else [made]
                for variable, value in zip(op.outputs, made, strict=True):
                    values[variable.name] = _typed(value, variable)
        # An output may be a constant, which no operation makes.
        return [_typed(_value(output, values), output).numpy() for output in self.function.outputs]

    def _operations(self) -> list[Any]:
        return [op for op in self.function.operations if op.op_type != "const" and not _packed(op)]

    def _unpacked(self) -> dict[str, Tensor]:
        """Constants, and weights that are stored compressed, as coremltools unpacks them."""
        values: dict[str, Tensor] = {}
        for op in self.function.operations:
            if _packed(op):
                made = op.materialized_val_inference()
                made = made if isinstance(made, list | tuple) else [made]
                for variable, value in zip(op.outputs, made, strict=True):
                    values[variable.name] = _tensor(value)
        return values


def _packed(op: Any) -> bool:
    return str(op.op_type).startswith("constexpr_")


def _value(given: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(given, list | tuple):
        return [_value(one, values) for one in given]
    if given is None:
        return None
    if given.name in values:
        return values[given.name]
    constant = given.val
    return _tensor(constant) if isinstance(constant, np.ndarray | np.generic) else constant


def _tensor(value: Any) -> Any:
    array = np.array(value)
    if array.dtype.kind in "US":
        return str(value)
    tensor = torch.from_numpy(np.ascontiguousarray(array)) if array.ndim else torch.tensor(array.item())
    return tensor.float() if tensor.is_floating_point() else tensor


def _typed(value: Tensor, variable: Any) -> Tensor:
    """A value in the type that the program gives it."""
    from coremltools.converters.mil.mil import types

    kind = types.builtin_to_string(variable.dtype)
    if kind == "fp16":
        return value.half().float()
    return value.to(KINDS[kind])
