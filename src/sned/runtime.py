"""ONNX Runtime as every measurement of sned uses it: one place that sets its options."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from sned.errors import MeasureError, NotFoundError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

_WARNINGS_AND_BELOW_ARE_HIDDEN = 3

AWAKE_US = 50
"""For how long threads that are kept awake wait for the next run before they sleep, as the runtime counts it: on some
processors it lasts several times as long, and whoever is timed next (`sned.devices.timer.SAMPLE_MS`) shares a core."""

CORES = Path("/sys/devices/system/cpu")
"""Where Linux tells which of its processors share a core."""

_LETS_THREADS_WAIT = (1, 26)
"""The first release that takes such a time; before it they wait for a second, or not at all."""


def session_options(threads: int, *, awake: bool = False) -> "SessionOptions":
    """Options that make two sessions of one process comparable, and their figures repeatable.

    All graph optimisations are on, operators run one after the other, and the pool stops spinning when a run
    ends: a session that idles while another is being timed must not take a core from it. Threads beside the calling
    one are pinned to a core each where the system tells of its cores, and `sned.timing` moves the calling one away from
    there: a thread that wakes up on the core of the one that waits for it gets no time for whole runs.

    Args:
        threads: inside an operator, at least 1.
        awake: threads wait a moment for the next run, as they do inside a network from one operator to the next; to
            wake them takes as long as a small operator. From ONNX Runtime 1.26 on.

    Raises:
        MeasureError: `threads` is below 1.
    """
    import onnxruntime

    if threads < 1:
        raise MeasureError(f"`threads` must be at least 1, got {threads}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _WARNINGS_AND_BELOW_ARE_HIDDEN
    if workers := _workers(threads):
        pinned = ";".join(str(processor + 1) for processor in workers)  # the runtime counts from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", pinned)
    release = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if awake and threads > 1 and release >= _LETS_THREADS_WAIT:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(AWAKE_US))
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def away_from_workers(threads: int) -> Callable[[], None]:
    """What moves the calling thread off the processors that `session_options` gives to the others.

    It may go where it likes afterwards: one that was pinned, too, could not make way for other programs.

    Args:
        threads: inside an operator, the calling one among them.
    """
    workers = _workers(threads)
    if not workers:
        return lambda: None
    everywhere = os.sched_getaffinity(0)

    def move() -> None:
        with suppress(OSError):  # somebody may take processors away meanwhile
            os.sched_setaffinity(0, everywhere - set(workers))
            os.sched_setaffinity(0, everywhere)

    return move


def _workers(threads: int) -> tuple[int, ...]:
    """The processors of the threads beside the calling one, each on a core of its own while there are any.

    None where there are too few, or where the system (any but Linux) does not tell which a process may use.
    """
    may_use = getattr(os, "sched_getaffinity", lambda _: ())
    siblings: dict[str, list[int]] = {}
    for processor in sorted(may_use(0)):
        siblings.setdefault(_core(processor), []).append(processor)
    turns = zip_longest(*siblings.values())
    free = [processor for turn in turns for processor in turn if processor is not None]
    return tuple(free[1:threads]) if threads <= len(free) else ()


def _core(processor: int) -> str:
    try:
        return (CORES / f"cpu{processor}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(processor)


def open_session(model: str | Path | bytes, *, threads: int = 1) -> "InferenceSession":
    """Open an ONNX file, or one that is in memory, on the CPU with `session_options`.

    Args:
        model: path of the file, or its bytes.
        threads: inside an operator, at least 1.

    Raises:
        NotFoundError: there is no such file.
        MeasureError: ONNX Runtime does not take the model; the text says what it said.
    """
    import onnxruntime

    source = model if isinstance(model, bytes) else os.fspath(_existing(Path(model)))
    shown = "the model in memory" if isinstance(model, bytes) else f"'{model}'"
    options = session_options(threads)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MeasureError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {shown}: {_first_line(error)} "
            "Check that the file is a whole ONNX model and that its operators are those of ONNX."
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"There is no file '{path}'. Give the path of an ONNX file.")
    return path


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text if text.endswith(".") else f"{text}."
