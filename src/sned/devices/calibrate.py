"""Calibrate this machine: time ops of a designed set, and tell how well others follow from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import chain

import numpy as np

from sned.devices.calibration import OPS, VERSION, Calibration, ColdWeights, CompanyCost, Fit, Sample, Statics
from sned.devices.cold import cold_of
from sned.devices.company import company_of, probes, small_networks
from sned.devices.design import Shape, design
from sned.devices.figures import figures
from sned.devices.fitted import LEAST_US, Timed, excess, fit
from sned.devices.host import call_us, general, overheads
from sned.devices.probe import block_size, environment
from sned.devices.profile import Device, find_device
from sned.devices.roofline import Roofline
from sned.devices.store import Store
from sned.devices.timer import YARDSTICK, Probe, Timer
from sned.errors import DeviceError, MeasureError
from sned.progress import SILENT, Progress

SECONDS = 300.0
PER_SECOND = 30
"""Ops in the design for each second: more than can be timed, so that time is what ends it."""

FIRST = 200
"""Ops that are timed whatever it takes: fewer would teach nothing."""

BESIDES = 0.12
"""Share of the time for what is measured besides single ops, at the start and again at the end: few figures, on which
each prediction rests, so that a busy minute must not spoil them."""

AGAIN = 0.2
"""Share of the time in which those ops are timed again that took longer than the others say: what else runs on the
machine only ever adds to a time, and what takes a core's share of the caches for a minute adds to all samples of an op.
"""

EXCEEDS = 0.03
"""Logarithm of how much longer that is at least."""

REPEATED = 60
"""How often that is timed each time: small differences of large times have to come out."""

NOISY = 0.5
"""Of the ops: where more were disturbed, nothing can be concluded."""

HELD_OUT = 6
"""Every sixth sample is held out to see how well it is told by the others."""


def calibrate_host(
    *,
    threads: int = 1,
    seconds: float = SECONDS,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> Calibration:
    """Time a designed set of ops on this machine, in ONNX Runtime and float32.

    What an earlier, interrupted calibration has timed is not timed again.

    Args:
        threads: inside an op, at least 1 and at most the cores of this machine.
        seconds: how long; 300 is the usual, 1,800 tells more. What each prediction rests on and the first `FIRST` ops
            are timed whatever it takes.
        store: where times are kept; by default the user's cache folder.
        progress: told of each op.

    Raises:
        DeviceError: more threads than cores, or no time.
        MeasureError: the machine is so busy that its times mean nothing.
    """
    device = find_device("host")
    if threads < 1 or (device.cores is not None and threads > device.cores):
        raise DeviceError(
            f"`threads` must lie between 1 and the {device.cores} cores of this machine, got {threads}."
        )
    if not seconds > 0:
        raise DeviceError(f"`seconds` must be above 0, got {seconds:g}.")
    block = block_size()
    store = Store.open(environment(threads)) if store is None else store
    networks = small_networks(block)
    drawn = [*design(block, max(FIRST, int(seconds * PER_SECOND))), *chain.from_iterable(networks.values())]
    shapes = {shape.key(block): shape for shape in drawn}
    besides = [*general(block), *probes(networks, block)]
    roofline = Roofline(figures(device, threads=threads, block=block), block)
    timer = _timed(besides, shapes, roofline, store, seconds, progress)
    return _calibration(device, roofline, shapes, networks, timer, store)


def _timed(
    besides: Sequence[Probe],
    shapes: Mapping[str, Shape],
    roofline: Roofline,
    store: Store,
    seconds: float,
    progress: Progress,
) -> Timer:
    """Time what is measured besides ops, ops that are not known yet until the time is nearly over, again those that
    took longer than others say, and again what is measured besides."""
    block = roofline.block
    ops = {key: Probe(key, partial(shape.model, block)) for key, shape in shapes.items()}
    needed = [probe for probe in besides if probe.key not in store.yardsticks]
    known = store.yardsticks.keys() | {probe.key for probe in needed}
    already = sum(key in known for key in shapes)
    unknown = [probe for key, probe in ops.items() if key not in known]
    first = unknown[: max(0, FIRST - already)]
    start = time.perf_counter()
    timer = Timer(store, block, start + (1 - BESIDES - AGAIN) * seconds)
    with progress.task("calibrating", total=len(needed) + len(unknown)) as advance:
        timer.time(needed, advance, left=round(len(needed) * (1 - BESIDES) / BESIDES), runs=REPEATED)
        timer.time(first, advance, left=len(unknown))
        timer.time(unknown[len(first) :], advance, left=len(unknown), optional=True)
    timer.until(start + (1 - BESIDES) * seconds)
    again = [ops[key] for key in _longest(shapes, timer.microseconds, roofline)]
    with progress.task("timing again what took longer than the rest", total=len(again)) as advance:
        timer.time(again, advance, left=len(again), optional=True)
    timer.until(start + seconds)
    with progress.task("timing networks again", total=len(besides)) as advance:
        timer.time(besides, advance, left=len(besides), runs=REPEATED, optional=True)
    _refuse_noise(timer)
    return timer


def _longest(shapes: Mapping[str, Shape], known: Mapping[str, float], roofline: Roofline) -> list[str]:
    """Names of the ops that took longer than the others say, from the worst on."""
    keys = [key for key in shapes if key in known]
    longer = excess(_samples(shapes, known), roofline)
    worst = np.argsort(-longer)
    return [keys[place] for place in worst[longer[worst] > EXCEEDS]]


def _samples(shapes: Mapping[str, Shape], known: Mapping[str, float]) -> list[Timed]:
    _, empty = overheads(known)
    return [Timed(shape, max(known[key] - empty, LEAST_US)) for key, shape in shapes.items() if key in known]


def _refuse_noise(timer: Timer) -> None:
    disturbed, taken = len(timer.disturbed), len(timer.relative)
    if taken and disturbed > NOISY * taken:
        raise MeasureError(
            f"This machine is too busy to be calibrated: of {taken} ops, half of the samples of {disturbed} lay more "
            "than a quarter above the quickest. What was timed without disturbance is kept: close what else is "
            "running, and run it again to go on from there."
        )


def _calibration(
    device: Device,
    roofline: Roofline,
    shapes: Mapping[str, Shape],
    networks: Mapping[str, Sequence[Shape]],
    timer: Timer,
    store: Store,
) -> Calibration:
    known = timer.microseconds
    _, empty = overheads(known)
    timed = _samples(shapes, known)
    cold = cold_of(known, empty, known[YARDSTICK])
    block, threads = roofline.block, store.environment.threads
    company = company_of(
        networks,
        {name: known[name] - empty for name in networks},
        lambda op: max(known[op.key(block)] - empty, LEAST_US),
        cold,
        roofline.figures,
    )
    _, _, version = store.environment.runtime.partition(" ")
    return Calibration(
        format="sned-calibration",
        version=VERSION,
        device=device.name,
        runtime="onnxruntime",
        runtime_version=version,
        processor=store.environment.processor,
        threads=threads,
        block=block,
        call_us=call_us(known, threads),
        samples=tuple(map(_sample, timed)),
        cold=ColdWeights(
            footprint_bytes=tuple(cold.footprints),
            byte_us={way: tuple(each) for way, each in cold.stream_us.items()},
            begin_us=dict(cold.begin_us),
            age_us=tuple(cold.ages_us),
            aged=tuple(cold.aged),
        ),
        company={way: CompanyCost(**asdict(lost)) for way, lost in company.items()},
        yardstick_us=known[YARDSTICK],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        busy=timer.busy,
        fit=held_out_fit(timed, roofline),
    )


def _sample(timed: Timed) -> Sample:
    family = timed.shape.family
    widths = dict(zip(OPS[family.recipe][0], map(int, timed.shape.widths), strict=True))
    return Sample(
        op=family.recipe,
        statics=Statics.model_validate(dict(family.statics)),
        widths=widths,
        us=round(timed.microseconds, 4),
    )


def held_out_fit(timed: Sequence[Timed], roofline: Roofline) -> Fit:
    """Learn from most of the samples, and tell the others."""
    kept = [sample for place, sample in enumerate(timed) if place % HELD_OUT]
    told = [sample for place, sample in enumerate(timed) if place % HELD_OUT == 0]
    fitted = fit(kept, roofline)
    ratio = np.array(
        [float(fitted.op_us(s.shape.family, s.shape.columns)[0]) / s.microseconds for s in told], np.float64
    )
    error = np.abs(ratio - 1)
    return Fit(
        samples=len(told),
        within_10=float((error <= 0.1).mean()),
        within_20=float((error <= 0.2).mean()),
        median_error=float(np.median(error)),
    )
