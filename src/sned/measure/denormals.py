"""Time that goes into denormal numbers: below 1e-38, and on some processors up to sixty times as slow as others.

Softmax makes them behind masks of -100, and so do signals that fade. No accuracy hangs on them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from sned.measure.latency import Array
from sned.runtime import open_session
from sned.timing import interleaved, processor_clock

TELLING = 0.05
"""From this share of a network's time on it is worth a setting of the runtime."""


@contextmanager
def denormals_as_zero() -> Iterator[bool]:
    """Have this thread take denormal numbers for zero; gives whether the processor can.

    A session that ONNX Runtime opens inside takes that back.
    """
    try:
        yield torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)


def denormal_share(
    path: str | Path, feeds: Mapping[str, Array], *, runs: int = 15, max_seconds: float = 5.0
) -> float:
    """How much of the time that an ONNX file takes on one thread goes into denormal numbers.

    Args:
        path: of the file.
        feeds: input name → array; what comes of other numbers may have other denormals.
        runs: rounds, in each of which the file runs as it is and with denormal numbers taken for zero.
        max_seconds: no new round is begun after that long, once there are five.

    Returns:
        A share from 0 to 1; 0 where the processor knows no such setting.

    Raises:
        MeasureError: ONNX Runtime cannot load or run the file.
        NotFoundError: there is no such file.
    """
    run = partial(open_session(path).run, None, dict(feeds))
    with denormals_as_zero() as possible:
        pass
    if not possible:
        return 0.0
    functions: dict[str, Callable[[], object]] = {"as they are": run, "as zero": partial(_flushed, run)}
    times = interleaved(functions, runs=runs, warmup=1, max_seconds=max_seconds, clock=processor_clock(1))
    return max(0.0, 1 - times["as zero"].p10_ms / times["as they are"].p10_ms)


def _flushed(run: Callable[[], object]) -> object:
    with denormals_as_zero():
        return run()
