"""`sned measure`: how long ONNX files take here."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.options import Batch, Json, Threads
from sned.cli.output import progress, say, show, show_json
from sned.errors import ExampleError, NotFoundError, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from sned.timing import Latency


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.onnx ...", help="One file, or several to compare.")
    ],
    batch: Batch = 1,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Rounds; each file runs once a round.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="No new round after that long.")] = 20.0,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", metavar="NAME=1,3,32,32", help="Shape of an input with more than its batch open."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE.npz", help="Arrays to feed, by the names of the inputs."),
    ] = None,
    json: Json = False,
) -> None:
    """Time ONNX files in ONNX Runtime, turn and turn about, with the threads fixed.

    Median, 10th and 90th percentile are of single runs. Several files are measured interleaved, so that a
    machine that heats up slows all of them alike; the ratio is to the first.

    [bold]Example:[/bold]

    sned measure out/dense.onnx out/model.onnx --threads 2
    """
    from sned.export.onnx_file import file_bytes
    from sned.measure import denormal_share, measure_onnx, random_feeds

    names = _names(files)
    shapes = dict(_shape(text) for text in shape or ())
    if inputs is not None and shapes:
        raise UserError("Give either `--inputs` or `--shape`: the arrays have shapes of their own.")
    feeds = _arrays(inputs) if inputs else random_feeds(files[0], batch=batch, shapes=shapes)
    times = measure_onnx(names, feeds, threads=threads, runs=runs, max_seconds=seconds, progress=progress())
    sizes = {name: file_bytes(path) for name, path in names.items()}
    lost = {name: denormal_share(path, feeds) for name, path in names.items()}
    if json:
        show_json(_data(times, sizes, lost, feeds))
    else:
        show(_table(times, sizes, feeds))
    _say_denormals(lost)
    _say_crowded(threads)
    if any(latency.noisy for latency in times.values()):
        say(
            "The machine was busy: the 90th percentile lies far above the median. Measure again when it is "
            "quiet."
        )


def _say_denormals(lost: Mapping[str, float]) -> None:
    from sned.measure.denormals import TELLING

    for name, share in lost.items():
        if share >= TELLING:
            say(
                f"{name} spends {share:.0%} of its time on numbers too small for a normal one (one thread). Open the "
                "first session of your program with the entry `session.set_denormal_as_zero` set to 1: results stay "
                "the same, and that time is gone."
            )


def _say_crowded(threads: int) -> None:
    from sned.devices.machine import cores

    most = cores()
    if threads > most:
        say(
            f"These times mean little: {threads} threads take turns on {most} core{'s'[: most != 1]}. Give `--threads` "
            f"{most} at most."
        )


def _names(files: list[Path]) -> dict[str, Path]:
    """Each file under the shortest name that tells it from the others."""
    short = [path.name for path in files]
    names = [str(path) if short.count(path.name) > 1 else path.name for path in files]
    if len(set(names)) < len(names):
        raise UserError(f"The same file was given twice: '{next(n for n in names if names.count(n) > 1)}'.")
    return dict(zip(names, files, strict=True))


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.partition("=")
    parts = [part.strip() for part in sizes.split(",")]
    if not equals or not name or not all(part.isdecimal() for part in parts):
        raise ExampleError(f"Give `--shape` as NAME=1,3,32,32, got '{text}'.")
    return name, tuple(int(part) for part in parts)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    if not path.is_file():
        raise NotFoundError(f"There is no file '{path}'. Write one with `numpy.savez`.")
    try:
        with np.load(path) as opened:
            return {name: opened[name] for name in opened.files}
    except (ValueError, OSError, AttributeError) as error:
        raise ExampleError(
            f"'{path}' is not an .npz file of arrays: {error}. Write one with `numpy.savez`."
        ) from error


def _data(
    times: "Mapping[str, Latency]",
    sizes: Mapping[str, int],
    lost: Mapping[str, float],
    feeds: Mapping[str, Any],
) -> dict[str, Any]:
    from dataclasses import asdict

    from sned.report import environment

    files = {
        name: {
            **asdict(latency),
            "noisy": latency.noisy,
            "size_bytes": sizes[name],
            "denormal_share": lost[name],
        }
        for name, latency in times.items()
    }
    fed = {name: list(array.shape) for name, array in feeds.items()}
    return {"files": files, "inputs": fed, "environment": asdict(environment())}


def _table(times: "Mapping[str, Latency]", sizes: Mapping[str, int], feeds: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    from sned.report.figures import milliseconds, ratio, size

    first = next(iter(times.values()))
    fed = ", ".join(f"{name} {'×'.join(map(str, array.shape))}" for name, array in feeds.items())
    threads = f"{first.threads} thread{'s' if first.threads != 1 else ''}"
    table = Table(title=f"{fed}; {threads}, {first.runs} interleaved runs", title_justify="left")
    table.add_column("file")
    for heading in ("median", "p10", "p90", "ratio", "file size"):
        table.add_column(heading, justify="right")
    for name, latency in times.items():
        spread = (latency.median_ms, latency.p10_ms, latency.p90_ms)
        versus = ratio(first.median_ms, latency.median_ms)
        table.add_row(name, *map(milliseconds, spread), versus, size(sizes[name]))
    return table
