"""The report as plain data: frozen, comparable, and the same after a trip through JSON."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from sned.errors import UserError
from sned.graph.ir import Frozen
from sned.report.environment import Environment
from sned.timing import Latency

FORMAT = 1
"""Version of the JSON; raised when a field changes its meaning."""


@dataclass(frozen=True)
class Asked:
    """What the user wanted.

    Attributes:
        model: what it is called, "ResidualCNN".
        example: its inputs in words, "1 × 3 × 32 × 32 float32".
        budget: quantity → what was written, {"latency_ms": "50%"}; quantities are named as in `Budget`.
        limits: quantity → what that came to, in the unit of the quantity's name.
        device: the device's name.
        runtime: "onnxruntime".
        batch: rows a run.
        threads: inside an operator.
        calibration: on what the network was studied, "512 inputs" or "none".
        compared: on what agreement was measured, "102 calibration inputs that repair held out".
        accuracy: how accuracy was obtained, "evaluate".
        basis: what predicted latencies stand on: "measured", "calibrated" or "estimated".
        origin: the same in words.
        energy: what energies stand on, in words.
        dtype: of weights and activations; the exported file is float32 whatever it is.
    """

    model: str
    example: str
    budget: dict[str, str]
    limits: dict[str, float]
    device: str
    runtime: str
    batch: int
    threads: int
    calibration: str = "none"
    compared: str = ""
    accuracy: str = ""
    basis: str = "measured"
    origin: str = ""
    energy: str = ""
    dtype: str = "float32"


@dataclass(frozen=True)
class State:
    """One network, dense or pruned; what was not obtained is None.

    Attributes:
        accuracy: by the user's own measure.
        agreement: fraction in [0, 1] of inputs given the dense network's class.
        latency: measured, of the exported file in its runtime.
        predicted_latency_ms: by the cost model.
        macs: multiply-accumulates a run.
        parameters: numbers that training sets.
        size_bytes: of the exported file; of the weights, where another type of numbers than the file's was asked for.
        peak_memory_bytes: of activations, predicted.
        energy_mj: a run, estimated.
        on_devices: of a set of devices, predictions by "latency_ms@pixel-9".
    """

    accuracy: float | None = None
    agreement: float | None = None
    latency: Latency | None = None
    predicted_latency_ms: float | None = None
    macs: float | None = None
    parameters: float | None = None
    size_bytes: float | None = None
    peak_memory_bytes: float | None = None
    energy_mj: float | None = None
    on_devices: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupLoss:
    """What one group of units lost.

    Attributes:
        name: the module whose outputs the units are.
        before: units.
        after: units kept.
        macs_share: fraction of the dense network's MACs that would go with the whole group; groups share
            work,
            so that shares sum to more than 1.
        latency_share: the same of predicted latency.
        error: what the criterion says the removal costs, in its own unit.
    """

    name: str
    before: int
    after: int
    macs_share: float | None = None
    latency_share: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class LayerLoss:
    """What one layer costs, before and after, as predicted; `kind` says what it is ("conv", "linear").

    `bound` says what of the hardware it waits for, before and after: "compute", a cache, "memory" or "overhead".
    """

    name: str
    kind: str
    latency_before_ms: float | None
    latency_after_ms: float | None
    macs_before: float | None
    macs_after: float | None
    parameters_before: float | None = None
    parameters_after: float | None = None
    bound_before: str = ""
    bound_after: str = ""
    bytes_before: float | None = None
    bytes_after: float | None = None


@dataclass(frozen=True)
class Roofs:
    """What bounds the layers of a network on a device, by its profile.

    Attributes:
        device: its name.
        gmacs_s: multiply-accumulates at the peak, billions a second.
        gb_s: bandwidth of each level by name, nearest first, "memory" last; gigabytes (1e9) a second.
        assumed: a sentence for each figure that the profile does not tell.
    """

    device: str
    gmacs_s: float
    gb_s: dict[str, float]
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """A plan that could have been chosen, or was: predicted latency, and quality before any training."""

    latency_ms: float
    quality: float
    chosen: bool = False
    label: str = ""


@dataclass(frozen=True)
class Curve:
    """The trade-off: what quality each latency buys; `quality` names what was evaluated, and on what."""

    quality: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Check:
    """Something that was verified; `value` is what came out, at most `limit` where there is one."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Deployment:
    """A file of a runtime beside the model in PyTorch; what was not obtained is None.

    Attributes:
        name: of the network, or of the stage ("pruned, int8").
        runtime: "LiteRT".
        precision: "fp32", "fp16", "int8" or "int8-dynamic".
        file: its name, without folders.
        size_bytes: of all that belongs to it.
        max_abs_diff: largest difference to PyTorch of any element of any output.
        error: root mean square of the difference over that of the outputs.
        agreement: fraction in [0, 1] of compared rows that got PyTorch's class.
        latency: of the file in its runtime.
        torch_latency: of the model in PyTorch, interleaved.
        accuracy: of the file, by the user's own measure.
        torch_accuracy: of the model, by the same.
        notes: what was chosen, and what was not checked.
    """

    name: str
    runtime: str
    precision: str
    file: str
    size_bytes: int
    max_abs_diff: float
    error: float
    agreement: float | None = None
    latency: Latency | None = None
    torch_latency: Latency | None = None
    accuracy: float | None = None
    torch_accuracy: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of a run: see each part. `notes` say what was chosen and why, one sentence or two each; `warning` is what has
    to be read before anything else; `stages` what `evaluate` gave "before", "as cut", "after repair" and "after
    training", where the network was trained."""

    asked: Asked
    before: State
    after: State
    environment: Environment
    groups: tuple[GroupLoss, ...] = ()
    layers: tuple[LayerLoss, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    curve: Curve | None = None
    roofs: Roofs | None = None
    checks: tuple[Check, ...] = ()
    warning: str = ""
    notes: tuple[str, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def __str__(self) -> str:
        """The table that `sned prune` shows, as plain text."""
        from sned.report.table import to_text  # reads reports, so it comes after them

        return to_text(self)


_ADAPTER = TypeAdapter(Report)


def to_json(report: Report) -> str:
    """Write a report as JSON, indented, in UTF-8; what was not obtained is null."""
    return _ADAPTER.dump_json(report, indent=2).decode()


def from_json(text: str) -> Report:
    """Read a report back.

    Raises:
        UserError: the text is not a report of this version.
    """
    try:
        report = _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"This is not a report of sned: {where}: {first['msg']}. Give a report.json."
        ) from error
    if report.format != FORMAT:
        raise UserError(
            f"This report is of format {report.format}, and this version of sned reads format {FORMAT}. "
            "Make the report again."
        )
    return report
