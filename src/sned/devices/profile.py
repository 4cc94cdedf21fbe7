"""Devices: what is known of each, read from the catalogue and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sned.devices import machine
from sned.errors import DeviceError, close_names

CATALOG = files("sned.devices") / "catalog"
SETS = files("sned.devices") / "sets.toml"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Runtime = Literal["onnxruntime", "litert", "litert-micro", "coreml", "executorch", "openvino"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
# No cache and no memory that holds a network is smaller: such a figure is one of kilobytes.
Bytes = Annotated[int, Field(ge=1024)]
Dtype = Literal["float32", "float16", "int8"]
Level = Literal["L1", "L2", "L3", "L4", "L5", "memory"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Cores(_Strict):
    """Cores of one kind.

    Attributes:
        count: how many.
        name: such as "Cortex-A76".
        clock_ghz: highest sustained clock.
        simd_bits: width of a vector register; 32 where there are none.
        fma_units: vectors of that width that a core can multiply and add in one cycle.
    """

    count: Count
    name: str | None = None
    clock_ghz: Annotated[float, Field(gt=0, lt=20)] | None = None
    simd_bits: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] | None = None
    fma_units: Annotated[int, Field(ge=1, le=16)] | None = None

    def slower_than(self, other: Cores) -> bool:
        """Whether one of these cores computes less than one of the others, by what is known of both."""
        pairs = [
            (getattr(self, figure), getattr(other, figure))
            for figure in ("clock_ghz", "simd_bits", "fma_units")
        ]
        return bool(prod(own / others for own, others in pairs if own and others) < 1)

    @property
    def described(self) -> str:
        """Its name, or else how many there are, and their clock."""
        clock = "" if self.clock_ghz is None else f" at {self.clock_ghz:g} GHz"
        return f"{self.name or f'{self.count} cores'}{clock}"


class Cache(_Strict):
    """A data cache: its level (1 is nearest), its bytes, and how many cores share it."""

    level: Annotated[int, Field(ge=1, le=5)]
    size_bytes: Bytes
    shared_by: Count | None = None


class Energy(_Strict):
    """What work costs, in picojoules.

    Attributes:
        mac_pj: of one multiply-accumulate, by the type of its operands: "float32", "float16", "int8".
        byte_pj: of moving one byte from a level of cache ("L1", "L2" …) or from "memory".
    """

    mac_pj: dict[Dtype, Positive] = Field(default_factory=dict)
    byte_pj: dict[Level, Positive] = Field(default_factory=dict)


class Device(_Strict):
    """What is known of a device. A figure that is None is not known, and never made up.

    Attributes:
        name: as it is asked for.
        title: as it is shown.
        kind: "host" is the machine that runs sned; its figures are read from it.
        runtimes: that can run networks on it.
        processor: name of the processor.
        clusters: its cores, the fastest kind first.
        simd: vector instructions.
        caches: nearest first.
        memory_bytes: of main memory; of RAM, on a microcontroller.
        memory_bandwidth_gb_s: of main memory, gigabytes (1e9) a second.
        flash_bytes: where a microcontroller keeps its weights.
        accelerator: what there is beside the cores; costs are of the cores.
        energy: of operations and of bytes moved.
        idle_power_w: watts when nothing runs.
        max_power_w: watts at most, sustained.
        thermal: when it slows down.
        sources: where each figure comes from, by its name.
        measured: the names of those figures that were measured; the others are published ones (data sheets, manuals).
    """

    name: Name
    title: str
    kind: Literal["host", "phone", "board", "laptop", "server", "microcontroller"]
    runtimes: Annotated[tuple[Runtime, ...], Field(min_length=1)]
    processor: str | None = None
    clusters: Annotated[tuple[Cores, ...], Field(min_length=1)] | None = None
    simd: tuple[str, ...] | None = None
    caches: tuple[Cache, ...] | None = None
    memory_bytes: Bytes | None = None
    memory_bandwidth_gb_s: Annotated[Positive, Field(lt=10_000)] | None = None
    flash_bytes: Bytes | None = None
    accelerator: str | None = None
    energy: Energy | None = None
    idle_power_w: Positive | None = None
    max_power_w: Positive | None = None
    thermal: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    measured: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for faster, slower in pairwise(self.clusters or ()):
            if faster.slower_than(slower):
                raise DeviceError(
                    f"Clusters must be listed the fastest cores first, but '{self.name}' has {faster.described} before "
                    f"{slower.described}. Correct its profile."
                )
        for near, far in pairwise(self.caches or ()):
            if far.level <= near.level or far.size_bytes < near.size_bytes:
                raise DeviceError(
                    "Caches must be listed nearest first, each at least as large as the one before, but "
                    f"'{self.name}' has {near.size_bytes} bytes at level {near.level} before "
                    f"{far.size_bytes} bytes at level {far.level}. Correct its profile."
                )
        if self.caches and self.memory_bytes and self.caches[-1].size_bytes >= self.memory_bytes:
            raise DeviceError(
                f"Main memory must be larger than every cache, but '{self.name}' has {self.memory_bytes} "
                f"bytes of it and a cache of {self.caches[-1].size_bytes}. Correct its profile."
            )
        if self.idle_power_w and self.max_power_w and self.idle_power_w >= self.max_power_w:
            raise DeviceError(
                f"`idle_power_w` must be less than `max_power_w`, but '{self.name}' has {self.idle_power_w:g} "
                f"and {self.max_power_w:g} W. Correct its profile."
            )
        for field, named in (("sources", self.sources), ("measured", self.measured)):
            for figure in named:
                if figure not in FIGURES:
                    raise DeviceError(
                        f"`{field}` of '{self.name}' names a figure '{figure}' that there is not. "
                        f"{close_names(figure, FIGURES)}"
                    )
                if getattr(self, figure) is None:
                    raise DeviceError(
                        f"`{field}` of '{self.name}' speaks of `{figure}`, which its profile does not give. Add the "
                        "figure, or take it from there."
                    )
        return self

    @property
    def cores(self) -> int | None:
        """Cores of all kinds together; None where not known."""
        return None if self.clusters is None else sum(cluster.count for cluster in self.clusters)

    @property
    def measurable(self) -> bool:
        """Whether sned can time ops on it from here."""
        return self.kind == "host"

    @property
    def unknown(self) -> tuple[str, ...]:
        """The figures that are not known."""
        return tuple(figure for figure in FIGURES if getattr(self, figure) is None)


FIGURES = (
    "processor", "clusters", "simd", "caches", "memory_bytes", "memory_bandwidth_gb_s", "flash_bytes", "accelerator",
    "energy", "idle_power_w", "max_power_w", "thermal",
)  # fmt: skip
"""What a profile can tell of a device; each has a source, or is not known."""


class DeviceSet(_Strict):
    """Devices that a budget must hold on, every one."""

    title: str
    members: Annotated[tuple[str, ...], Field(min_length=1)]


def list_devices() -> list[Device]:
    """Every device of the catalogue, by name."""
    return [find_device(name) for name in _names()]


def find_device(name: str) -> Device:
    """The device called `name`; upper and lower case are the same.

    Raises:
        DeviceError: there is none; close names are listed.
    """
    known = _names()
    if name.lower() in list_sets():
        raise DeviceError(
            f"'{name}' is a set of devices, and one was asked for. `sned devices list` shows its members."
        )
    if name.lower() not in known:
        raise DeviceError(
            f"There is no device '{name}' in the catalogue. {close_names(name, [*known, *list_sets()])} "
            "A profile of your own is given by its path, which ends in .toml."
        )
    text = (CATALOG / f"{name.lower()}.toml").read_text(encoding="utf-8")
    device = parse_device(text, origin=f"{name.lower()}.toml")
    return _with_own_figures(device) if device.measurable else device


def list_sets() -> dict[str, DeviceSet]:
    """The sets of devices, by name."""
    held = tomllib.loads(SETS.read_text(encoding="utf-8"))
    return {
        name: DeviceSet.model_validate({key: _tuples(value) for key, value in entry.items()})
        for name, entry in held.items()
    }


def find_devices(name: str) -> tuple[Device, ...]:
    """The devices that a name means: a device, a set, the path of a profile, or several of these with commas.

    Raises:
        DeviceError: a part of the name is none of these, or a profile is not valid.
    """
    found: dict[str, Device] = {}
    for part in name.split(","):
        for device in _meant(part.strip()):
            if found.setdefault(device.name, device) != device:
                raise DeviceError(
                    f"Devices must have different names, but two profiles of '{name}' are called '{device.name}'. "
                    "Change the `name` in one of them."
                )
    return tuple(found.values())


def find_one(name: str, *, why: str) -> Device:
    """The one device that a name means.

    Args:
        name: as for `find_devices`.
        why: begins the error where it means several.

    Raises:
        DeviceError: as `find_devices`, or the name means several devices.
    """
    found = find_devices(name)
    if len(found) > 1:
        members = ", ".join(device.name for device in found)
        raise DeviceError(f"{why}, got '{name}', which is several. Give one of {members}.")
    return found[0]


def _meant(name: str) -> tuple[Device, ...]:
    if name.lower().endswith(".toml"):
        return (read_device(name),)
    members = list_sets().get(name.lower())
    return (find_device(name),) if members is None else tuple(find_device(one) for one in members.members)


def read_device(path: str | Path) -> Device:
    """Read a profile of one's own from a TOML file.

    Raises:
        DeviceError: the file cannot be read, its profile is not valid, or has the name of a device that sned knows.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(
            f"The device profile '{path}' cannot be read: {error}. Give the path of a TOML file."
        ) from error
    device = parse_device(text, origin=str(path))
    if device.measurable:
        raise DeviceError(
            f"The device profile '{path}' has `kind = \"host\"`, and that is this machine, whose figures are read from "
            "it. Give the kind of the device: phone, board, laptop, server or microcontroller."
        )
    # Calibrations and limits of a device are kept by its name.
    if device.name in (*_names(), *list_sets()):
        raise DeviceError(
            f"The device profile '{path}' is called '{device.name}', as one in the catalogue is. "
            "Give it another `name`."
        )
    return device


def parse_device(text: str, *, origin: str = "profile") -> Device:
    """Check the text of a profile.

    Args:
        text: TOML.
        origin: how to call it in errors.

    Raises:
        DeviceError: not TOML, an unknown key, or a figure that cannot be.
    """
    try:
        return _validated(tomllib.loads(text), origin)
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"The device profile '{origin}' must be TOML, but {_lower(str(error))}.") from error


def _validated(held: Mapping[str, Any], origin: str) -> Device:
    try:
        # TOML knows lists only, and the fields are tuples: strictness is for the figures.
        return Device.model_validate({key: _tuples(value) for key, value in held.items()})
    except ValidationError as error:
        raise DeviceError(_worded(error, origin)) from error


def _worded(error: ValidationError, origin: str) -> str:
    """The first thing that is wrong, in a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"clusters": Cores, "caches": Cache, "energy": Energy}
        holder = parts.get(str(first["loc"][0]), Device)
        known = close_names(str(first["loc"][-1]), holder.model_fields)
        return f"The device profile '{origin}' has a key `{place}` that is not one of a profile. {known}"
    if first["type"] == "missing":
        return f"The device profile '{origin}' must have a key `{place}`. Add it."
    return (
        f"The device profile '{origin}' has an impossible `{place}`: {_lower(first['msg'])}, "
        f"got {first['input']!r}. Correct it, or leave the key out if the figure is not known."
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml") for entry in CATALOG.iterdir() if entry.name.endswith(".toml")
    )


def _with_own_figures(device: Device) -> Device:
    caches = machine.data_caches()
    simd = machine.simd()
    cores = Cores(count=machine.cores(), clock_ghz=machine.clock_ghz(), simd_bits=machine.simd_bits(simd))
    figures: dict[str, object] = {
        "processor": machine.processor_name(),
        "clusters": (cores,),
        "simd": simd,
        "caches": caches and tuple(Cache(**vars(level)) for level in caches),
        "memory_bytes": machine.memory_bytes(),
    }
    told = {name: "read from this machine" for name, value in figures.items() if value is not None}
    return device.model_copy(update={**figures, "sources": told})
