"""Memory and energy of a network, from shapes alone: what a run holds at once, and what moving and computing take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sned.devices.figures import Figures
from sned.devices.kernels import FloatArray, Kernel, Workload


def elements(work: Workload, sizes: FloatArray) -> list[FloatArray]:
    """Elements of every value of a network, each `[P]`, for `P` plans."""
    return [extent.at(sizes) for extent in work.elements]


def peak_elements(work: Workload, of: Sequence[FloatArray]) -> FloatArray:
    """Elements of activations that a run holds at most, for `P` plans: `[P]` from what `elements` tells.

    A tensor is held from the step that writes it to the last that reads it, inputs of the network from the start and
    its outputs to the end. An element-wise step writes over an input that nobody reads afterwards. Weights are not
    counted, and neither is what kernels need for themselves.
    """
    last = _last_use(work)
    held: FloatArray = np.sum([of[value] for value in dict.fromkeys(work.inputs)], axis=0)
    peak = held
    for step, kernel in enumerate(work.kernels):
        dying = [value for value in dict.fromkeys(kernel.inputs) if last[value] == step]
        before = held
        for value in _written(kernel, last):
            held = held + of[value]
        reused = _reused(work, kernel, dying)
        peak = np.maximum(peak, held if reused is None else np.maximum(before, held - of[reused]))
        for value in dying:
            held = held - of[value]
    return peak


def _last_use(work: Workload) -> dict[int, int]:
    last = {value: step for step, kernel in enumerate(work.kernels) for value in kernel.inputs}
    return {**last, **dict.fromkeys(work.outputs, len(work.kernels))}


def _written(kernel: Kernel, last: Mapping[int, int]) -> list[int]:
    """What a step writes; runtimes leave out what nobody reads, such as the places of a pool's maxima."""
    return [value for value in (kernel.output, *kernel.further) if value in last]


def _reused(work: Workload, kernel: Kernel, dying: Sequence[int]) -> int | None:
    """The input that a step can write over."""
    if kernel.kind not in ("elementwise", "reshape", "norm"):
        return None
    shape = work.values[kernel.output].shape
    fitting = (value for value in dying if kernel.kind == "reshape" or work.values[value].shape == shape)
    return next(fitting, None)


def energy_mj(
    work: Workload, sizes: FloatArray, of: Sequence[FloatArray], figures: Figures, latency_ms: FloatArray
) -> FloatArray:
    """Millijoules of a run, for `P` plans.

    Formula: `E = n_mac · e_mac + Σ_l bytes_l · e_l + P_idle · t`. Each step's activations come from the nearest cache
    that holds them, its weights, as often as it reads them, from the nearest that holds all weights.

    Args:
        work: the network.
        sizes: `[P, S]`, from `Workload.sizes_of`.
        of: elements of every value, from `elements`.
        figures: of the device.
        latency_ms: `[P]`, during which idle power flows.
    """
    stored = work.weights_of(sizes) * figures.bytes
    weight_pj = figures.byte_pj[np.searchsorted(figures.sizes, stored)] * figures.bytes
    last = _last_use(work)
    picojoules: FloatArray = np.zeros(len(sizes))
    for kernel in work.kernels:
        if kernel.weights.factor:
            picojoules = picojoules + kernel.weights.at(sizes) * weight_pj
        if kernel.macs.factor:
            picojoules = picojoules + kernel.macs.at(sizes) * figures.mac_pj
        if kernel.kind == "reshape":
            continue
        moved = figures.bytes * np.sum([of[v] for v in (*_written(kernel, last), *kernel.inputs)], axis=0)
        picojoules = picojoules + moved * figures.byte_pj[np.searchsorted(figures.sizes, moved)]
    return np.asarray(picojoules / 1e9 + figures.idle_w * latency_ms)
