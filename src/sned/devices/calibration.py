"""Calibrations of devices: op times that were measured there, as files that another computer or a phone can write.

The format is written down in docs/calibration-format.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from onnx import defs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sned.devices.cold import NEAR, Cold
from sned.devices.company import Company, Way
from sned.devices.demand import OPERATIONS
from sned.devices.design import Shape
from sned.devices.figures import figures
from sned.devices.fitted import Timed
from sned.devices.kernels import Static
from sned.devices.layout import Family
from sned.devices.probe import Fetching, environment
from sned.devices.profile import Device, Dtype, Name, Runtime
from sned.devices.roofline import Roofline
from sned.devices.store import cache_folder
from sned.errors import DeviceError, close_names
from sned.files import atomic_write_text

VERSION: Final = 3
FEWEST_SAMPLES = 30
FAR = 200.0
"""Times more or less than a profile says at the median: what is further away is in milliseconds or nanoseconds."""

ENOUGH = 200
"""Samples to see that by."""

HOST = "host"

_CONV = ("kernel", "stride", "padding", "dilation", "spatial", "output", "activation")
_POOL = ("op", "kernel", "stride", "padding", "spatial", "output")
OPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "direct_conv": (("n", "ci", "co"), _CONV),
    "blocked_conv": (("n", "ci", "co"), _CONV),
    "plain_conv": (("n", "ci", "co"), _CONV),
    "blocked_depthwise": (("n", "c"), _CONV),
    "plain_depthwise": (("n", "c"), (*_CONV, "multiplier")),
    "blocked_grouped": (("n", "groups", "ci", "co"), _CONV),
    "plain_grouped": (("n", "groups", "ci", "co"), _CONV),
    "deconv": (("n", "ci", "co"), _CONV[:-1]),
    "gemm": (("m", "k", "n"), ()),
    "matmul": (("b", "m", "k", "n"), ()),
    "blocked_pool": (("n", "c"), _POOL),
    "plain_pool": (("n", "c"), _POOL),
    "reorder_input": (("n", "c"), ("inner",)),
    "reorder_output": (("n", "c"), ("inner",)),
    "elementwise": (("elements",), ("op", "inputs")),
    "concat": (("elements",), ("inputs",)),
    "copy": (("elements",), ("op",)),
    "norm": (("n", "c"), ("inner",)),
    "rows": (("rows", "columns"), ("op",)),
    "reduce": (("rows", "columns"), ("op",)),
    "reshape": ((), ("op",)),
}
"""For each op of the format, the names of its widths in order, and of what does not change with a plan."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "blocked_pool": ("MaxPool", "AveragePool"),
    "plain_pool": ("MaxPool", "AveragePool"),
    "copy": ("Transpose", "Slice"),
    "rows": ("Softmax", "LayerNormalization", "SkipLayerNormalization"),
    "reduce": ("ReduceMean",),
    "reshape": ("Reshape",),
}
"""What `op` may be, for each op of the format that takes few; in others it is any operator of ONNX."""

LARGEST = 1 << 40
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Micro = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1, le=LARGEST)]
Axes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]


def _operator(name: str) -> str:
    if name and name not in OPERATIONS and not defs.has(name):
        raise ValueError(f"'{name}' is no operator of ONNX")
    return name


Activation = Annotated[str, AfterValidator(_operator)]
Operator = Annotated[Activation, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Statics(_Strict):
    """What does not change with a plan; of each op those that `OPS` names."""

    kernel: Axes | None = None
    stride: Axes | None = None
    padding: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], Field(min_length=1)] | None = None
    dilation: Axes | None = None
    spatial: Axes | None = None
    output: Axes | None = None
    activation: Activation | None = None
    multiplier: Size | None = None
    inner: Size | None = None
    inputs: Size | None = None
    op: Operator | None = None

    @model_validator(mode="after")
    def _as_many_axes(self) -> Self:
        axes = {name: len(value) for name, value in self if isinstance(value, tuple)}
        if len(set(axes.values())) > 1:
            told = ", ".join(f"{count} for `{name}`" for name, count in axes.items())
            raise ValueError(f"lists must have as many numbers as the image has axes, got {told}")
        return self

    @property
    def given(self) -> dict[str, Static]:
        """Those that are given, by name."""
        return {name: value for name, value in self if value is not None}


class Sample(_Strict):
    """One op and the time it took.

    Attributes:
        op: one of `OPS`.
        statics: what does not change with a plan: kernel, stride …
        widths: what a plan changes, by name; at least 1.
        us: microseconds of one run of the op, without what a call costs besides.
    """

    op: str
    statics: Statics = Statics()
    widths: dict[str, Size]
    us: Micro

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.op not in OPS:
            raise DeviceError(
                f"A calibration has samples of ops that sned knows, got '{self.op}'. {close_names(self.op, OPS)}"
            )
        for what, held, expected in (
            ("widths", self.widths, OPS[self.op][0]),
            ("statics", self.statics.given, OPS[self.op][1]),
        ):
            if set(held) != set(expected):
                raise DeviceError(
                    f"The `{what}` of '{self.op}' in a calibration must be {', '.join(expected) or 'empty'}, "
                    f"got {', '.join(held) or 'nothing'}."
                )
        if (op := self.statics.op) not in CHOICES.get(self.op, (op,)):
            raise DeviceError(
                f"The `op` of '{self.op}' in a calibration must be {' or '.join(CHOICES[self.op])}, got '{op}'."
            )
        return self

    def timed(self) -> Timed:
        """The same as the fit takes it."""
        widths = tuple(float(self.widths[name]) for name in OPS[self.op][0])
        return Timed(Shape(Family(self.op, tuple(sorted(self.statics.given.items()))), widths), self.us)


class ColdWeights(_Strict):
    """What an op loses because its weights are far away when a network comes to it again.

    Attributes:
        footprint_bytes: of all weights of a network, ascending.
        byte_us: microseconds that each byte of an op's weights takes longer at each footprint, for each way to go
            through them: "window", "points", "plain window", "plain points", "place", "rows", "row" (see
            `sned.devices.probe.Fetching`). Only the first is needed.
        begin_us: microseconds an op loses besides from as far as weights get, whatever its size, for each way.
        age_us: microseconds from one run of a network to the next, ascending.
        aged: of how many times as many bytes the weights would be as far away by then.
    """

    footprint_bytes: tuple[Micro, ...]
    byte_us: dict[Fetching, tuple[NotNegative, ...]]
    begin_us: dict[Fetching, NotNegative] = Field(default_factory=dict)
    age_us: tuple[Micro, ...] = (1.0,)
    aged: tuple[Annotated[float, Field(ge=1, allow_inf_nan=False)], ...] = (1.0,)

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if "window" not in self.byte_us:
            raise ValueError("`byte_us` must have numbers for `window`")
        lists = [(f"byte_us.{way}", each, "footprint_bytes") for way, each in self.byte_us.items()]
        for name, values, of in (*lists, ("aged", self.aged, "age_us")):
            places = getattr(self, of)
            if not places or len(values) != len(places):
                raise ValueError(
                    f"`{name}` must have a number for each of `{of}`, got {len(values)} for {len(places)}"
                )
            if list(places) != sorted(set(places)):
                raise ValueError(f"`{of}` must rise")
            if list(values) != sorted(values):
                raise ValueError(f"`{name}` must not fall")
        return self


class CompanyCost(_Strict):
    """What an op takes longer in a network than alone.

    Attributes:
        begin_us: microseconds, whatever its size.
        byte_us: microseconds for each byte that it reads or writes, as far as the nearest caches hold them.
        beyond_us: the same of those that they do not hold.
    """

    begin_us: NotNegative = 0.0
    byte_us: NotNegative = 0.0
    beyond_us: NotNegative = 0.0


class Fit(_Strict):
    """How well samples that were held out are told from the others.

    Attributes:
        samples: held out.
        within_10: fraction of them that are told within 10 %.
        within_20: within 20 %.
        median_error: of them, relative.
    """

    samples: Annotated[int, Field(ge=0)]
    within_10: Fraction
    within_20: Fraction
    median_error: NotNegative


class Calibration(_Strict):
    """Op times of a device in one runtime.

    Attributes:
        format, version: "sned-calibration" and 3.
        device: name in the catalogue, or of a profile of one's own.
        runtime: that ran the ops.
        runtime_version: of it.
        processor: as the machine names it.
        threads: inside an op.
        dtype: of weights and activations.
        block: channels in a block of the runtime's layout; 1 where it keeps images as they are.
        call_us: what a run costs besides its ops.
        samples: ops and times.
        cold: what far-away weights cost; None where that was not measured.
        company: what ops lose in a network, by the way their data are kept: see `sned.devices.company.Way`.
        yardstick_us: what the op took that the others were timed against. On this machine it is timed again whenever
            the calibration is used, so that a machine that is slower today is told as such.
        created: when, ISO 8601.
        busy: share of the time in which the machine was doing something else, too; None where that is not known.
        fit: on samples held out; None where it was not tried.
    """

    format: Literal["sned-calibration"]
    version: Literal[3]
    device: Name
    runtime: Runtime
    runtime_version: str
    processor: str = ""
    threads: Annotated[int, Field(ge=1)] = 1
    dtype: Dtype = "float32"
    block: Annotated[int, Field(ge=1)] = 1
    call_us: NotNegative
    samples: Annotated[tuple[Sample, ...], Field(min_length=FEWEST_SAMPLES)]
    cold: ColdWeights | None = None
    company: dict[Way, CompanyCost] = Field(default_factory=dict)
    yardstick_us: Micro | None = None
    created: str = ""
    busy: Fraction | None = None
    fit: Fit | None = None

    def cold_weights(self) -> Cold:
        """What far-away weights cost; nothing, where it was not measured."""
        held = self.cold
        if held is None:
            return NEAR
        each = {way: np.array(values) for way, values in held.byte_us.items()}
        places, ages, aged = map(np.array, (held.footprint_bytes, held.age_us, held.aged))
        return Cold(places, each, held.begin_us, ages, aged)

    def company_lost(self) -> dict[Way, Company]:
        """What ops lose in company; nothing, where it was not measured."""
        return {way: Company(**dict(cost)) for way, cost in self.company.items()}


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration that was made here or elsewhere.

    Raises:
        DeviceError: the file cannot be read, or is no calibration.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"The calibration '{path}' cannot be read: {error}. Give the path of a JSON file."
        ) from error
    return parse_calibration(held, origin=str(path))


def parse_calibration(held: Any, *, origin: str = "calibration") -> Calibration:
    """Check what a file held.

    Raises:
        DeviceError: it is no calibration of a version that is understood.
    """
    try:
        return Calibration.model_validate(held)
    except ValidationError as error:
        raise DeviceError(_worded(error, origin)) from error


def _worded(error: ValidationError, origin: str) -> str:
    """The first thing that is wrong, in a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "file"
    wrong = first["msg"].removeprefix("Value error, ")
    got = f", got {first['input']!r}" if isinstance(first["input"], int | float | str | None) else ""
    older = " A calibration of another version has to be made again." if place == "version" else ""
    return (
        f"'{origin}' is not a calibration of version {VERSION}: `{place}`: {wrong[:1].lower()}{wrong[1:]}{got}. "
        f"The format is in docs/calibration-format.md.{older}"
    )


def belonging(calibration: Calibration, device: Device) -> Calibration:
    """A calibration as one of `device`: a computer that calibrates itself calls itself "host", wherever the file goes.

    Raises:
        DeviceError: it is of another device, of a runtime or of more threads than the device has, or of another
            processor than this machine's where that is the device; or its times are in another unit.
    """
    c = calibration
    if c.device not in (device.name, HOST):
        raise DeviceError(
            f"A calibration must be of the device that is asked for, '{device.name}', got one of '{c.device}'. "
            f"Name '{c.device}', or give the path of its profile."
        )
    if c.runtime not in device.runtimes:
        raise DeviceError(
            f"A calibration must be of a runtime that '{device.name}' has ({', '.join(device.runtimes)}), "
            f"got one of {c.runtime}."
        )
    if device.cores is not None and c.threads > device.cores:
        raise DeviceError(
            f"A calibration must be of no more threads than the {device.cores} cores of '{device.name}', "
            f"got one of {c.threads} threads."
        )
    here = environment(c.threads).processor
    if device.measurable and c.processor not in ("", here):
        raise DeviceError(
            f"A calibration of 'host' must be of this machine ({here}), got one of another ({c.processor}). "
            "Run `sned devices calibrate host` here, or name the device that the file is of."
        )
    _check_unit(c, device)
    return c.model_copy(update={"device": device.name})


def _check_unit(c: Calibration, device: Device) -> None:
    """Refuse times that are further from the profile than any device is."""
    roofline = Roofline(figures(device, threads=c.threads, dtype=c.dtype, block=c.block), c.block)
    timed = [sample.timed() for sample in c.samples[:: 1 + len(c.samples) // ENOUGH]]
    told = [roofline.launch_us(t.shape.family, t.shape.columns, np.zeros(1))[0] for t in timed]
    ratio = float(np.median(np.array([t.microseconds for t in timed]) / told))
    if not 1 / FAR < ratio < FAR:
        raise DeviceError(
            f"Times in a calibration must be microseconds, but half of those of '{device.name}' are {ratio:.2g} times "
            "what its profile says, or further from it. Write them in microseconds, or correct the profile."
        )


def calibration_path(
    device: str, runtime: str, threads: int, dtype: str = "float32", folder: Path | None = None
) -> Path:
    """Where the calibration of a device is kept."""
    return (folder or cache_folder() / "calibrations") / f"{device}-{runtime}-{threads}-{dtype}.json"


def save_calibration(calibration: Calibration, folder: Path | None = None) -> Path:
    """Keep a calibration for its device, in place of an older one; returns where."""
    c = calibration
    path = calibration_path(c.device, c.runtime, c.threads, c.dtype, folder)
    atomic_write_text(path, c.model_dump_json(exclude_none=True))
    return path


def find_calibration(
    device: str, runtime: str, threads: int, dtype: str = "float32", folder: Path | None = None
) -> Calibration | None:
    """The calibration that is kept for a device; None where there is none.

    Raises:
        DeviceError: the file is damaged.
    """
    path = calibration_path(device, runtime, threads, dtype, folder)
    return read_calibration(path) if path.is_file() else None
