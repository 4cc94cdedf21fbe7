"""Times told from a profile: against sums done by hand, and in the directions that hardware has."""

import time

import numpy as np
import pytest
import torch

from sned.devices import Device, cost_model, find_device
from sned.devices.figures import CALL_CYCLES, LAUNCH_CYCLES, MAC_PJ, figures
from sned.devices.layout import Family
from sned.devices.profile import parse_device
from sned.devices.roofline import EFFICIENCY, Roofline
from sned.errors import DeviceError
from sned.graph import Graph, trace
from tests.devices.networks import Residual, random_counts, sizes, trained

BOARD = """
name = "board-1"
title = "A board"
kind = "board"
runtimes = ["onnxruntime"]
simd = ["asimd", "asimdhp"]
memory_bytes = 1000000000
memory_bandwidth_gb_s = 3.0
clusters = [
    {count = 2, clock_ghz = 2.0, simd_bits = 128, fma_units = 2}, {count = 2, clock_ghz = 1.0, simd_bits = 128, fma_units = 1},
]
caches = [{level = 1, size_bytes = 32768, shared_by = 1}, {level = 2, size_bytes = 524288, shared_by = 4}]
energy = {mac_pj = {float32 = 2.0}, byte_pj = {L1 = 1.0, L2 = 3.0, memory = 100.0}}
idle_power_w = 2.0
"""


@pytest.fixture(scope="module")
def board() -> Device:
    return parse_device(BOARD)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(trained(Residual()), torch.randn(1, 3, 24, 24))


def test_the_peak_is_what_the_cores_can_do(board: Device) -> None:
    assert figures(board).macs_per_us == 2000 * 2 * 4
    assert figures(board, threads=2).macs_per_us == 2 * 2000 * 2 * 4
    assert figures(board, threads=3).macs_per_us == 2 * 2000 * 2 * 4 + 1000 * 4
    assert figures(board, dtype="float16").macs_per_us == 2000 * 2 * 8
    # Without dot products int8 is widened first: nothing is gained.
    assert figures(board, dtype="int8").macs_per_us == figures(board).macs_per_us
    assert figures(board).levels == ("L1", "L2", "memory")
    assert figures(board).bytes_per_us[-1] == 3000
    assert figures(board).assumed == (figures(board).assumed[-1],)


def test_each_core_computes_with_its_own_vectors() -> None:
    """One core of 16 floats a vector and two vectors a cycle at 2 GHz, then four of 2 floats and one at 1 GHz."""
    mixed = parse_device(
        'name = "x"\ntitle = "X"\nkind = "phone"\nruntimes = ["onnxruntime"]\nmemory_bandwidth_gb_s = 17.0\n'
        "clusters = [{count = 1, clock_ghz = 2.0, simd_bits = 512, fma_units = 2},"
        ' {name = "small", count = 4, clock_ghz = 1.0, simd_bits = 64}]'
    )
    one, three = figures(mixed), figures(mixed, threads=3)
    assert one.macs_per_us == 2000 * 2 * 16
    assert three.macs_per_us == 2000 * 2 * 16 + 2 * 1000 * 2 * 2
    assert three.operations_per_us == 2000 * 16 + 2 * 1000 * 2
    assert three.bytes_per_us[0] == 2000 * 2 * 64 + 2 * 1000 * 2 * 8
    # The last roof: what the cores can draw, then what the memory gives.
    assert (one.bytes_per_us[-1], three.bytes_per_us[-1]) == (6 * 2000, 17_000)
    drawn = "a core draws 6 bytes a cycle from memory at most, 12 of its 17 GB/s"
    gap = "how many vectors a core multiplies and adds in a cycle (small) is not known, 2 assumed"
    assert [said for said in one.assumed if said in (drawn, gap)] == [drawn]
    assert [said for said in three.assumed if said in (drawn, gap)] == [gap]


def test_what_is_not_known_is_assumed_and_said() -> None:
    device = parse_device('name = "x"\ntitle = "X"\nkind = "phone"\nruntimes = ["coreml"]')
    said = "; ".join(figures(device).assumed)
    for what in ("its cores", "the clock", "the width of its vectors", "level-1", "level-2", "memory bandwidth",
                 "energy of an operation", "energy of moving a byte", "power at idle"):  # fmt: skip
        assert what in said
    with pytest.raises(DeviceError, match="`dtype` must be one of float32, float16, int8, got 'int4'"):
        figures(device, dtype="int4")


def test_a_product_takes_as_long_as_its_slowest_roof(board: Device) -> None:
    roofline = Roofline(figures(board))
    begin = LAUNCH_CYCLES / 2000

    def took(m: float, k: float, n: float, footprint: float) -> float:
        at = tuple(np.array([value]) for value in (m, k, n))
        return float(roofline.launch_us(Family("gemm"), at, np.array([footprint]))[0])

    # Large and square: arithmetic. 16-byte vectors, so 8 outputs at a time.
    assert took(256, 256, 256, 4 * 256**2) == pytest.approx(256**3 / (16_000 * EFFICIENCY["gemm"]) + begin)
    # One row: the weights must come from main memory, at 3 GB/s.
    assert took(1, 1024, 1024, 4 * 1024**2) == pytest.approx((4 * 1024**2) / 3000 + 8192 / 64_000 + begin)
    assert took(1, 1024, 1024, 4 * 1024**2) > took(1, 1024, 1024, 4 * 1024) > begin


@pytest.mark.parametrize(
    ("at", "footprint", "bound"),
    [((256, 256, 256), 1e5, "compute"), ((1, 1024, 1024), 4e6, "memory"), ((1, 8, 8), 1e3, "overhead"),
     ((1, 300, 300), 4e5, "L2")],
)  # fmt: skip
def test_what_an_op_waits_for(board: Device, at: tuple[float, ...], footprint: float, bound: str) -> None:
    from sned.devices.layout import Launch

    widths = tuple(np.array([float(value)]) for value in at)
    launch = Launch(0, 0, Family("gemm"), np.array([True]), widths)
    small = figures(board)
    if bound == "L2":
        from dataclasses import replace

        small = replace(small, launch_us=0.0)
    assert Roofline(small).binding(launch, np.array([footprint]))[0] == bound


def test_channels_count_in_whole_tiles(graph: Graph, board: Device) -> None:
    cost = cost_model(graph, board)
    dense = sizes(graph)
    plans = np.repeat(dense[None], 9, axis=0)
    plans[:, 1] = np.arange(24, 33)  # the inner width of the first block
    macs, latency = cost.evaluate(plans).macs, cost.evaluate(plans).latency_ms
    assert (np.diff(macs) > 0).all()
    assert latency[1] == pytest.approx(latency[8], rel=0.2)
    assert latency[0] < latency[1]


def test_faster_hardware_is_faster(graph: Graph) -> None:
    def latency(name: str, **options: object) -> float:
        return float(cost_model(graph, find_device(name), **options).evaluate(sizes(graph)).latency_ms[0])  # type: ignore[arg-type]

    assert latency("raspberry-pi-5") < latency("raspberry-pi-4")
    assert latency("galaxy-s25") < latency("galaxy-a55") < latency("galaxy-a06")
    assert latency("pixel-9", dtype="int8") < latency("pixel-9", dtype="float16") < latency("pixel-9")
    assert latency("pixel-9", batch=4) > 2 * latency("pixel-9")
    assert latency("cloud-c7g") < latency("stm32h743", runtime="litert-micro")


def test_layers_add_up_and_say_what_they_wait_for(graph: Graph, board: Device) -> None:
    cost = cost_model(graph, board)
    layers = cost.layers(sizes(graph))
    assert sum(layer.latency_ms for layer in layers) == pytest.approx(
        cost.evaluate(sizes(graph)).latency_ms[0]
    )
    assert layers[0].latency_ms == pytest.approx(CALL_CYCLES / 2e6)
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    assert {layer.bound for layer in convolutions} <= {"compute", "L1", "L2", "memory", "overhead"}
    assert all(layer.bytes_moved > 0 for layer in convolutions)
    assert cost.basis == "estimated"
    assert cost.origin == "an estimate from the device's data sheet"


def test_energy_is_of_operations_bytes_and_time(graph: Graph, board: Device) -> None:
    cost = cost_model(graph, board)
    told = cost.evaluate(sizes(graph)).at(0)
    least = told["macs"] * 2.0 / 1e9 + 2.0 * told["latency_ms"]
    assert (
        least
        < told["energy_mj"]
        < least + 100.0 * (told["size_bytes"] + 50 * told["peak_memory_bytes"]) / 1e9
    )
    assert cost_model(graph, board).energy_origin == "an estimate from the device's data sheet"
    phone = cost_model(graph, find_device("pixel-9"))
    assert phone.figures.mac_pj == MAC_PJ["float32"]
    assert phone.energy_origin.endswith("data sheet, and figures for 45 nm where it has none")


def test_twenty_thousand_estimates_a_second(graph: Graph, board: Device) -> None:
    cost = cost_model(graph, board)
    rng = np.random.default_rng(0)
    plans = np.repeat(np.array([random_counts(graph, rng) for _ in range(100)]), 200, axis=0)
    start = time.process_time()
    assert (cost.evaluate(plans).energy_mj > 0).all()
    assert time.process_time() - start < 1.0
