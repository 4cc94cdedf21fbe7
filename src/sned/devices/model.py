"""Make the cost model of a network on a device, from the best that is known of the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from sned.devices.budget import Budget
from sned.devices.calibration import Calibration, belonging, find_calibration
from sned.devices.cost import Basis, Cost, FleetCost
from sned.devices.figures import figures
from sned.devices.fitted import fit
from sned.devices.host import OpTables, Wanted, measure
from sned.devices.kernel_rules import workload
from sned.devices.kernels import FloatArray, Workload
from sned.devices.layout import Launch, launches
from sned.devices.probe import block_size, environment
from sned.devices.profile import Device, find_devices
from sned.devices.roofline import Roofline
from sned.devices.store import Store
from sned.devices.timer import yardstick_us
from sned.errors import DeviceError
from sned.graph.ir import Graph
from sned.progress import SILENT, Progress

SECONDS = 20.0
"""Of measuring the ops of a network whose latency is searched by."""

SECONDS_TO_REPORT = 5.0
"""Of measuring them where a latency is only told."""


def cost_model(
    graph: Graph,
    device: Device,
    *,
    runtime: str = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    dtype: str = "float32",
    basis: Basis | None = None,
    seconds: float = SECONDS,
    store: Store | None = None,
    calibrations: Path | None = None,
    progress: Progress = SILENT,
) -> Cost:
    """Make the cost model of a network on a device.

    Args:
        graph: the traced network.
        device: from `find_device`.
        runtime: that runs the network there, one of `device.runtimes`.
        batch: inputs at once, at least 1.
        threads: inside an op, at least 1 and at most the cores of the device.
        dtype: of weights and activations: "float32", "float16" or "int8".
        basis: what latencies should stand on; by default the best that there is: "measured" on this machine, else
            "calibrated" where the device has a calibration, else "estimated" from its profile. With
            "calibrated" nothing is timed on this machine either, once `sned devices calibrate host` was run.
        seconds: how long to measure at most.
        store: where measured times are kept; by default the user's cache folder.
        calibrations: folder of calibrations; by default in the user's cache folder.
        progress: told of each op measured.

    Raises:
        DeviceError: the device does not have the runtime or so many cores, the network was traced at another batch
            size only, or the basis asked for is not to be had.
    """
    _check(graph, device, runtime, batch, threads)
    if basis not in (None, *get_args(Basis)):
        raise DeviceError(
            f"`basis` must be one of {', '.join(get_args(Basis))}, got {basis!r}. Or leave it out."
        )
    work = workload(graph, batch)
    here = device.measurable and runtime == "onnxruntime" and dtype == "float32"
    block = block_size() if here else 1
    roofline = Roofline(figures(device, threads=threads, dtype=dtype, block=block), block)
    held = (
        None
        if basis in ("measured", "estimated") or (basis is None and here)
        else find_calibration(device.name, runtime, threads, dtype, calibrations)
    )
    if basis is None:
        basis = "measured" if here else "estimated" if held is None else "calibrated"
    if basis == "calibrated":
        if held is None:
            raise DeviceError(
                f"There is no calibration of '{device.name}' for {runtime}, {threads} thread{'s'[: threads != 1]} "
                f"and {dtype}. Run `sned devices calibrate {device.name}`, or leave the basis out."
            )
        return _calibrated(work, device, belonging(held, device), dtype)
    if basis == "measured":
        if not here:
            raise DeviceError(
                f"Ops can be measured on this machine in onnxruntime and float32, got '{device.name}', {runtime} and "
                f"{dtype}. Leave the basis out, or calibrate the device elsewhere and read the calibration in."
            )
        wanted = _all_wanted(work, block)
        store = Store.open(environment(threads)) if store is None else store
        tables = measure(wanted, block, store, seconds=seconds, progress=progress)
        return Cost(work, roofline, tables, "measured", device.name)
    return Cost(work, roofline, device=device.name, capacity=_capacity(device))


def _calibrated(work: Workload, device: Device, held: Calibration, dtype: str) -> Cost:
    roofline = Roofline(figures(device, threads=held.threads, dtype=dtype, block=held.block), held.block)
    pace = 1.0
    if device.measurable and held.yardstick_us is not None:
        pace = yardstick_us(held.block, held.threads) / held.yardstick_us
    fitted = fit([sample.timed() for sample in held.samples], roofline)
    tables = OpTables(
        block=held.block,
        call_us=held.call_us,
        yardstick_us=held.yardstick_us or 0.0,
        tables=fitted.tables(_all_wanted(work, held.block), held.block, held.company_lost()),
        cold=held.cold_weights(),
    )
    return Cost(
        work,
        roofline,
        tables,
        "calibrated",
        device.name,
        scale=pace,
        capacity=_capacity(device),
        notes=(
            *version_notes(device, held),
            *_untold(fitted.untold(_all_launches(work, held.block)), device),
        ),
    )


def _untold(kinds: Sequence[str], device: Device) -> tuple[str, ...]:
    """Ops whose times are no more than the profile says, whatever the basis is called."""
    if not kinds:
        return ()
    return (
        f"The calibration of '{device.name}' has too few samples of {', '.join(kinds)} to tell them: they are "
        "estimated from its data sheet, times the ratio that is usual.",
    )


def version_notes(device: Device, held: Calibration) -> tuple[str, ...]:
    """A calibration from another version of the runtime than the one that is installed here."""
    import onnxruntime

    if held.runtime != "onnxruntime" or held.runtime_version == onnxruntime.__version__:
        return ()
    return (
        f"The calibration of '{device.name}' was made with onnxruntime {held.runtime_version}, and "
        f"{onnxruntime.__version__} is installed here: its kernels may take another time. Calibrate again.",
    )


def _all_wanted(work: Workload, block: int) -> list[Wanted]:
    """Every family that a network can need, from its narrowest plan to the whole of it."""
    return [_wanted(launch) for launch in _all_launches(work, block)]


def _all_launches(work: Workload, block: int) -> list[Launch]:
    return launches(work, np.concatenate([work.least, work.dense]), block)


def cost_for(graph: Graph, budget: Budget, *, progress: Progress = SILENT) -> Cost | FleetCost:
    """Make the cost model that a budget asks for: of its device, or of every device of its set.

    Raises:
        DeviceError: a device of the budget does not exist or cannot run what is asked.
    """
    costs = [
        cost_model(
            graph, device, runtime=budget.runtime, batch=budget.batch, threads=budget.threads, dtype=budget.dtype,
            seconds=SECONDS if budget.latency_ms is not None else SECONDS_TO_REPORT, progress=progress,
        )
        for device in find_devices(budget.device)
    ]  # fmt: skip
    return costs[0] if len(costs) == 1 else FleetCost(costs)


def check_runs(graph: Graph, budget: Budget) -> None:
    """Refuse what the devices of a budget cannot run, before anything is measured.

    Raises:
        DeviceError: a device does not exist, or does not have the runtime, the cores or the batch.
    """
    for device in find_devices(budget.device):
        _check(graph, device, budget.runtime, budget.batch, budget.threads)


def batch_of(graph: Graph, batch: int) -> int:
    """Inputs of a run where `batch` is asked for: a network of one batch size keeps that of its example."""
    return batch if graph.batched else graph.batch


def limits_for(budget: Budget, cost: Cost | FleetCost, dense: Mapping[str, float]) -> dict[str, float]:
    """What a budget allows of each cost, and what the device can hold at all, if that is less.

    Args:
        budget: what is asked.
        cost: from `cost_for`.
        dense: what the network costs unpruned.

    Raises:
        BudgetError: an amount is limited that the model does not tell.
    """
    limits = budget.limits(dense)
    for name, most in cost.capacity.items():
        limits[name] = min(most, limits.get(name, most))
    return limits


def _capacity(device: Device) -> dict[str, float]:
    """A microcontroller holds activations in RAM and weights in flash, and there is nothing beside."""
    if device.kind != "microcontroller":
        return {}
    known = {"peak_memory_bytes": device.memory_bytes, "size_bytes": device.flash_bytes}
    return {name: float(most) for name, most in known.items() if most is not None}


def _check(graph: Graph, device: Device, runtime: str, batch: int, threads: int) -> None:
    if runtime not in device.runtimes:
        raise DeviceError(
            f"`runtime` must be one that '{device.name}' has ({', '.join(device.runtimes)}), got {runtime!r}."
        )
    if batch < 1:
        raise DeviceError(f"`batch` must be at least 1, got {batch}.")
    # 1 is what nobody asked for: such a network is costed as it was traced.
    if not graph.batched and batch not in (1, graph.batch):
        raise DeviceError(
            f"This network runs at a batch size of {graph.batch} only, that of its example, got `batch` {batch}. "
            "Give an example with as many inputs as there will be."
        )
    if threads < 1 or (device.cores is not None and threads > device.cores):
        raise DeviceError(
            f"`threads` must lie between 1 and the {device.cores} cores of '{device.name}', got {threads}."
        )


def _wanted(launch: Launch) -> Wanted:
    return Wanted(launch.family, *(tuple(_edge(launch.widths, edge)) for edge in (0, 1)))


def _edge(widths: Sequence[FloatArray], edge: int) -> list[float]:
    return [float(width[edge]) for width in widths]
