"""How long ONNX files take on this machine, timed against each other."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sned.errors import ExampleError, MeasureError
from sned.progress import SILENT, Progress
from sned.runtime import open_session
from sned.timing import SETTLE_MS, Clock, Latency, interleaved

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

Array: TypeAlias = npt.NDArray[Any]

_MAKERS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "tensor(float)": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "tensor(float16)": lambda rng, shape: rng.standard_normal(shape).astype(np.float16),
    "tensor(double)": lambda rng, shape: rng.standard_normal(shape),
    # An index of 1 is in range of every table with two rows, and a mask of ones masks nothing.
    "tensor(int64)": lambda rng, shape: np.ones(shape, np.int64),
    "tensor(int32)": lambda rng, shape: np.ones(shape, np.int32),
    "tensor(uint8)": lambda rng, shape: rng.integers(0, 256, shape, np.uint8),
    "tensor(int8)": lambda rng, shape: rng.integers(-128, 128, shape, np.int8),
    "tensor(bool)": lambda rng, shape: np.ones(shape, np.bool_),
}


def measure_onnx(
    files: Mapping[str, str | Path],
    feeds: Mapping[str, Array],
    *,
    threads: int = 1,
    runs: int = 100,
    warmup: int = 10,
    max_seconds: float = 20.0,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = SILENT,
) -> dict[str, Latency]:
    """Time ONNX files in ONNX Runtime, in one process, turn and turn about.

    A machine that heats up or gets busy slows all of them alike, so that their ratio holds where the figures
    themselves may not. All get the same options (`sned.runtime.session_options`) and the same inputs.

    Args:
        files: name → path of an ONNX file; all take inputs of the same names.
        feeds: input name → array, as `sned.export.feeds` or `random_feeds` makes them.
        threads: inside an operator, at least 1.
        runs: rounds that count, at least 1; each file runs once a round.
        warmup: rounds before those.
        max_seconds: no new round is begun after that long, once there are five.
        seed: of the order within the rounds.
        clock: of the wall, or `sned.timing.processor_clock`.
        progress: told of each round.

    Returns:
        For each name its `Latency`: median, 10th and 90th percentile in milliseconds a run, and whether the
        spread was so wide that small differences mean nothing (`.noisy`).

    Raises:
        MeasureError: ONNX Runtime cannot load or run a file.
        NotFoundError: there is no such file.

    Example:
        measure_onnx({"before": "a.onnx", "after": "b.onnx"}, random_feeds("a.onnx"))["after"].median_ms
    """
    sessions = {name: open_session(path, threads=threads) for name, path in files.items()}
    for name, session in sessions.items():
        _run_once(session, feeds, name)
    runners = {name: partial(session.run, None, dict(feeds)) for name, session in sessions.items()}
    return interleaved(
        runners,
        runs=runs,
        warmup=warmup,
        threads=threads,
        max_seconds=max_seconds,
        settle_ms=SETTLE_MS,  # the other files' weights have just pushed this one's out of the cache
        seed=seed,
        clock=clock,
        progress=progress,
    )


def random_feeds(
    path: str | Path, *, batch: int = 1, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, Array]:
    """Make inputs of the shapes that an ONNX file names.

    Real numbers are drawn from a standard normal distribution; integers and booleans are all ones.

    Args:
        path: of the file.
        batch: what an open first axis is set to.
        shapes: input name → shape, for inputs with other open axes.
        seed: of the numbers drawn.

    Raises:
        ExampleError: an open axis is not given, or a given shape is not one that the input takes.
        NotFoundError: there is no such file.
    """
    inputs = open_session(path).get_inputs()
    given = dict(shapes or {})
    unknown = given.keys() - {value.name for value in inputs}
    if unknown:
        known = ", ".join(repr(value.name) for value in inputs)
        raise ExampleError(f"'{path}' has no input {sorted(unknown)[0]!r}. Its inputs are {known}.")
    rng = np.random.default_rng(seed)
    return {value.name: _filled(value, given.get(value.name), batch, rng) for value in inputs}


def _filled(value: "NodeArg", given: Sequence[int] | None, batch: int, rng: np.random.Generator) -> Array:
    if value.type not in _MAKERS:
        raise ExampleError(
            f"Input '{value.name}' is of {value.type}, which sned cannot make up. Give the data."
        )
    return _MAKERS[value.type](rng, _shape(value, given, batch))


def _shape(value: "NodeArg", given: Sequence[int] | None, batch: int) -> tuple[int, ...]:
    declared = list(value.shape)
    if given is None:
        sizes = [batch if axis == 0 and not _fixed(size) else size for axis, size in enumerate(declared)]
        open_axes = [size for size in sizes if not _fixed(size)]
        if open_axes:
            raise ExampleError(
                f"Input '{value.name}' takes {_shown(declared)}: the size of "
                f"{', '.join(map(str, open_axes))} is open. Give the shape of that input."
            )
        return tuple(sizes)
    fits = len(given) == len(declared) and all(
        not _fixed(size) or size == ours for size, ours in zip(declared, given, strict=True)
    )
    if not fits:
        raise ExampleError(f"Input '{value.name}' takes {_shown(declared)}, got {list(given)}.")
    return tuple(given)


def _fixed(size: object) -> bool:
    return isinstance(size, int)


def _shown(sizes: Sequence[object]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _run_once(session: "InferenceSession", feeds: Mapping[str, Array], name: str) -> None:
    """Find out that the inputs do not fit before anything is timed."""
    try:
        session.run(None, dict(feeds))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        given = ", ".join(f"{key} {list(value.shape)}" for key, value in feeds.items())
        raise MeasureError(f"ONNX Runtime could not run '{name}' on {given}: {reason}") from error
