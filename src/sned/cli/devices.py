"""`sned devices`: what networks can be cut for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.options import Json, Threads
from sned.cli.output import help_of, progress, say, show, show_json
from sned.cli.stopping import stoppable
from sned.errors import DeviceError

if TYPE_CHECKING:
    from rich.table import Table

    from sned.devices import Device
    from sned.devices.calibration import Calibration
    from sned.devices.profile import DeviceSet

MUCH = 0.2
"""Of the time of a calibration, in which the machine did something else."""

app = typer.Typer(no_args_is_help=True, help="List the devices, show what is known of one, or calibrate one.")


def list_(json: Json = False) -> None:
    """List the devices of the catalogue, and the sets of them that a budget can name.

    [bold]Example:[/bold]

    sned devices list
    """
    from sned.devices import list_devices, list_sets

    devices, sets = list_devices(), list_sets()
    if json:
        held = [{"name": name, "kind": "set", **held.model_dump(mode="json")} for name, held in sets.items()]
        show_json([*(device.model_dump(mode="json") for device in devices), *held])
        return
    show(_catalogue(devices))
    show(_sets(sets))


def show_(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As `sned devices list` shows it, or the path of a profile (.toml)."
        ),
    ],
    json: Json = False,
) -> None:
    """Show what is known of a device, and where each figure comes from.

    [bold]Example:[/bold]

    sned devices show host
    """
    from sned.devices import find_devices

    devices = find_devices(name)
    if json:
        data = [device.model_dump(mode="json") for device in devices]
        show_json(data[0] if len(data) == 1 else data)
        return
    for device in devices:
        show(_profile(device))
        show(_reckoned(device))


def calibrate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="host; another device, or a profile of your own (.toml), with --from."
        ),
    ] = "host",
    threads: Threads = 1,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=1,
            help="How long; 1800 tells more than the usual 300. Some ops are timed whatever it takes.",
        ),
    ] = 300.0,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE.json", help="Read in a calibration that was made elsewhere."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Time anew what is known: the machine was busy, or has changed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Also write it here.")
    ] = None,
    json: Json = False,
) -> None:
    """Time a designed set of ops in ONNX Runtime, so that networks can be costed without timing theirs.

    A calibration of another device is used wherever that is named. One of this machine is used where it is asked for
    ([bold]sned inspect --basis calibrated[/bold], `cost_model(..., basis="calibrated")`): a search here times the very
    ops of its network, which is nearer.

    It takes five minutes, goes on where it was interrupted, and tells how well it predicts ops that it held
    out. A calibration that another computer or a phone made is read in with [bold]--from[/bold]; the format is in
    docs/calibration-format.md.

    [bold]Examples:[/bold]

    sned devices calibrate host --threads 2

    sned devices calibrate pixel-9 --from pixel-9.json

    sned devices calibrate my-board.toml --from my-board.json
    """
    from sned.devices.calibration import calibration_path, save_calibration
    from sned.devices.model import version_notes
    from sned.devices.profile import find_one
    from sned.files import atomic_write_text, check_writable

    device = find_one(name, why="A calibration is of one device")
    for place in filter(None, (calibration_path(device.name, "onnxruntime", threads), out)):
        check_writable(place)
    made = _made(device, threads, seconds, from_, again=again)
    if out is not None:  # first: the other may meet a disk that has become full
        atomic_write_text(out, made.model_dump_json(exclude_none=True))
    path = save_calibration(made)
    for note in version_notes(device, made):
        say(note)
    if json:
        show_json(
            {
                **made.model_dump(mode="json", exclude={"samples", "cold"}),
                "samples": len(made.samples),
                "path": str(path),
            }
        )
    else:
        show(_calibrated(made, str(path)))


def _made(device: "Device", threads: int, seconds: float, file: Path | None, *, again: bool) -> "Calibration":
    """Read from a file, or measured."""
    if file is not None:
        from sned.devices.calibration import belonging, read_calibration

        if again:
            raise DeviceError(
                "`--again` times anew what is known of this machine, and with `--from` nothing is timed. Leave one out."
            )
        made = belonging(read_calibration(file), device)
        if threads not in (1, made.threads):
            raise DeviceError(
                f"A calibration that is read in has its own number of threads: '{file}' is of {made.threads}, and "
                f"--threads {threads} was asked for. Leave it out."
            )
        return made
    if not device.measurable:
        raise DeviceError(
            f"Only this machine can be timed from here, got '{device.name}'. Calibrate it where it is, and read the "
            f"file in: `sned devices calibrate {device.name} --from FILE.json`."
        )
    from sned.devices.calibrate import calibrate_host
    from sned.devices.probe import environment
    from sned.devices.store import Store

    store = Store.open(environment(threads))
    if again:
        store.yardsticks.clear()
    return calibrate_host(threads=threads, seconds=seconds, store=store, progress=progress())


def _calibrated(made: "Calibration", path: str) -> str:
    from sned.report.figures import percent

    ops = len({sample.op for sample in made.samples})
    said = (
        f"{made.device}: {len(made.samples)} times of {ops} kinds of ops in {made.runtime} {made.runtime_version}, "
        f"{made.threads} thread{'s'[: made.threads != 1]}; kept in {path}."
    )
    if made.fit is not None:
        f = made.fit
        said += (
            f"\nOf {f.samples} ops held out, {percent(f.within_10, 0)} are told within 10 % and "
            f"{percent(f.within_20, 0)} within 20 %; half of them within {percent(f.median_error)}."
        )
    if made.busy is not None and made.busy > MUCH:
        said += (
            f"\nThe machine did something else {percent(made.busy, 0)} of the time, which makes predictions worse: run "
            "it with --again when the machine is quiet."
        )
    return said


def _catalogue(devices: "list[Device]") -> "Table":
    from rich.table import Table

    table = Table()
    for heading in ("name", "what", "kind", "processor", "runtimes", "measured here"):
        table.add_column(heading)
    for device in devices:
        table.add_row(
            device.name,
            device.title,
            device.kind,
            device.processor or "",
            ", ".join(device.runtimes),
            "yes" if device.measurable else "no",
        )
    return table


def _sets(sets: "Mapping[str, DeviceSet]") -> "Table":
    from rich.table import Table

    table = Table(title="Sets: a budget must hold on every member", title_justify="left")
    for heading in ("name", "what", "members"):
        table.add_column(heading, overflow="fold")
    for name, held in sets.items():
        table.add_row(name, held.title, ", ".join(held.members))
    return table


def _reckoned(device: "Device") -> str:
    """What the cost model makes of a profile, and what it assumed."""
    from sned.devices.figures import figures

    made = figures(device)
    rates = zip(made.levels, made.bytes_per_us, strict=True)
    roofs = ", ".join(f"{name} {rate / 1e3:.3g} GB/s" for name, rate in rates)
    assumed = "\n".join(f"· {sentence}" for sentence in made.assumed)
    return (
        f"Reckoned with, one thread and float32: {made.macs_per_us / 1e3:.3g} GMACs/s at the peak; {roofs}.\n"
        f"Estimates stand on these assumptions:\n{assumed}\n"
    )


def _profile(device: "Device") -> "Table":
    from rich.table import Table

    table = Table(title=f"{device.title} ({device.name})", title_justify="left")
    table.add_column("figure", style="dim")
    table.add_column("value", overflow="fold")
    table.add_column("how")
    table.add_column("source", style="dim", overflow="fold")
    for figure, value in device.model_dump().items():
        if figure in ("name", "title", "sources", "measured"):
            continue
        table.add_row(figure, _written(figure, value), _how(device, figure), device.sources.get(figure, ""))
    return table


def _how(device: "Device", figure: str) -> str:
    if figure in device.measured:
        return "measured"
    if figure not in device.sources:
        return ""
    return "read" if device.measurable else "published"


def _written(figure: str, value: Any) -> str:
    """One figure in words; "not known" is said, not hidden."""
    if value is None:
        return "not known"
    special = {
        "clusters": _clusters, "caches": _caches, "memory_bytes": _memory, "flash_bytes": _memory, "energy": _energy,
    }.get(figure)  # fmt: skip
    if special is not None:
        return special(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _clusters(clusters: Any) -> str:
    return ", ".join(map(_cluster, clusters))


def _energy(energy: Any) -> str:
    parts = [f"{value:g} pJ a MAC in {name}" for name, value in energy["mac_pj"].items()]
    return ", ".join(
        [*parts, *(f"{value:g} pJ a byte from {name}" for name, value in energy["byte_pj"].items())]
    )


def _cluster(cluster: Any) -> str:
    details = [f"{cluster[part]}{unit}" for part, unit in _CLUSTER_PARTS if cluster[part] is not None]
    cores = f"{cluster['count']} core{'s' if cluster['count'] != 1 else ''}"
    return f"{cores} ({', '.join(details)})" if details else cores


_CLUSTER_PARTS = (
    ("name", ""),
    ("clock_ghz", " GHz"),
    ("simd_bits", "-bit vectors"),
    ("fma_units", " at a time"),
)


def _caches(caches: Any) -> str:
    return ", ".join(f"L{cache['level']} {_memory(cache['size_bytes'])}" for cache in caches)


def _memory(value: float) -> str:
    """Memory comes in powers of two."""
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value} bytes"


app.command("list", help=help_of(list_))(list_)
app.command("show", help=help_of(show_))(show_)
app.command("calibrate", help=help_of(calibrate))(
    stoppable(calibrate, "Stopped. What was timed is kept, and the same command goes on from there.")
)
