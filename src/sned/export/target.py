"""What every runtime offers to an export: how its file is written, and how that file is run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from sned.errors import ExportError, UserError, close_names
from sned.export.parity import Array
from sned.graph.example import Inputs

FP32, FP16, INT8, DYNAMIC = "fp32", "fp16", "int8", "int8-dynamic"
PRECISIONS: Mapping[str, str] = {
    FP32: "32-bit floats",
    FP16: "weights, and arithmetic where the runtime has it, in 16-bit floats",
    INT8: "8-bit weights per channel and, where the runtime has it, 8-bit activations calibrated beforehand",
    DYNAMIC: "8-bit weights; the range of activations is found at run time (transformers, LSTMs)",
}


class Level(Protocol):
    """A network as an exporter takes it: `Captured`, or a Keras model for Keras's own exporter."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that enter, in the order of the model's."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that come out."""

    @property
    def example(self) -> tuple[Tensor, ...]:
        """The tensors it was recorded with."""

    @property
    def attends(self) -> bool:
        """Whether the network has attention."""


class Source(Protocol):
    """A network that can be run, and made ready for an exporter."""

    @property
    def module(self) -> nn.Module:
        """What holds its weights."""

    def run(self, example: Inputs) -> tuple[Tensor, ...]:
        """What it computes."""
        ...

    def capture(self, example: Inputs, *, dynamic_batch: bool) -> Level:
        """It, as an exporter takes it."""
        ...


class Session(Protocol):
    """A file that is open in its runtime."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once. Inputs are in the order of the model's tensors, at the batch that the file takes."""
        ...


@dataclass(frozen=True)
class Order:
    """What to write.

    Attributes:
        path: where; of a passing folder, for the file gets its name once it is checked.
        precision: a key of `PRECISIONS` that the target has.
        calibration: for each level, inputs as lists of arrays, at the batch of the file; for static int8.
        sparse: write zeros in the form that the runtime gains from.
        opset: of ONNX operators; None for the exporter's default.
        system: oldest system that must run the file, "iOS17"; None for the target's default.
        channels_last: images enter as `[batch, height, width, channels]`, where the target can choose.
    """

    path: Path
    precision: str = FP32
    calibration: Mapping[str, Sequence[Sequence[Array]]] | None = None
    sparse: bool = False
    opset: int | None = None
    system: str | None = None
    channels_last: bool = True

    def samples(self, level: str) -> Sequence[Sequence[Array]]:
        """The calibration inputs of a level."""
        return (self.calibration or {}).get(level, ())


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        name: as it is asked for, "litert".
        title: of the runtime, "LiteRT (XNNPACK)".
        suffix: of its files.
        modules: what must be importable to write and to read its files, else `extra` is named.
        extra: of the package, "litert"; empty where it is always there.
        precisions: which of `PRECISIONS` it has.
        write: write the levels into one file, return remarks for people.
        read: open a level of a file on so many threads.
        dynamic_batch: whether the batch may stay open.
        levels: what several networks in one file are called; empty where the runtime cannot share weights.
        sparse: what zeros inside tensors give there, in a sentence; empty where nothing is written for them.
        halves: whether the network must be recorded in 16 bits for a file in 16 bits.
        wide: precisions that its tools make of networks in 32-bit floats alone.
        mends_biases: whether the runtime's own quantiser corrects biases.
        here: whether the runtime itself runs on this machine; if not, `read` evaluates the file otherwise.
        threads: whether it keeps to a number of threads; if not, nothing is timed.
        options: which of "opset", "system" and "channels_last" it has.
    """

    name: str
    title: str
    suffix: str
    modules: tuple[str, ...]
    extra: str
    precisions: tuple[str, ...]
    write: Callable[[Mapping[str, Any], Order], tuple[str, ...]]
    read: Callable[[Path, str, int], Session]
    dynamic_batch: bool = False
    levels: str = ""
    sparse: str = ""
    halves: bool = False
    wide: tuple[str, ...] = ()
    mends_biases: bool = False
    here: bool = True
    threads: bool = True
    options: tuple[str, ...] = ()


NONE_SPARSE = "No weight is stored sparse: none gets smaller without its zeros."
"""What a writer says that was asked for the sparse form and found nothing for it."""

NONE_COARSER = "Nothing went to 8 bits: the runtime's quantiser takes no layer of this network."
"""What a writer says that was asked for 8 bits and whose quantiser left all as it was."""

_HOMES = {name: f"sned.export.{name}" for name in ("onnx", "coreml", "litert", "executorch", "openvino")}
TARGETS = tuple(_HOMES)
"""Every runtime that there is an exporter for; its package is needed only when it is used."""

KERAS_ONLY: Mapping[str, str] = {"savedmodel": "sned.export.keras"}
"""Forms that Keras alone writes, of Keras models."""


def find_target(name: str) -> Target:
    """The target of a name, whether its package is installed or not.

    Raises:
        UserError: there is none of that name.
    """
    homes = {**_HOMES, **KERAS_ONLY}
    if name not in homes:
        raise UserError(
            f"`to` must be one of {', '.join(homes)}, got {name!r}. {close_names(str(name), list(homes))}"
        )
    target: Target = import_module(homes[name]).TARGET
    return target


def installed(target: Target) -> bool:
    """Whether all that the target needs can be imported."""
    return all(find_spec(module) is not None for module in target.modules)


def require(target: Target, precision: str = FP32, levels: int = 1) -> None:
    """Refuse what a target cannot do, before any work.

    Raises:
        UserError: a precision or several levels that the runtime has not.
        ExportError: its package is not installed; the text has the line that installs it.
    """
    if precision not in target.precisions and target.precisions == (FP32,):
        raise UserError(
            f"{target.title} files hold 32-bit floats alone, got {precision!r}. Leave `quantize` out, or write to "
            "another runtime."
        )
    if precision not in target.precisions:
        has = ", ".join(name for name in target.precisions if name != FP32)
        raise UserError(f"`quantize` must be one of {has} for {target.title}, got {precision!r}.")
    if levels > 1 and not target.levels:
        able = [name for name in TARGETS if find_target(name).levels]
        raise UserError(
            f"{target.title} cannot hold several networks that share weights in one file. "
            f"Export them one by one, or to one of {', '.join(able)}."
        )
    if not installed(target):
        raise ExportError(
            f"Exporting to {target.title} needs packages that are not installed "
            f"({', '.join(module for module in target.modules if find_spec(module) is None)}). "
            f"Install them: pip install 'sned[{target.extra}]'"
        )
