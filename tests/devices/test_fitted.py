"""Times learnt from times: against ops whose time is worked out here from what they do."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest

from sned.devices import find_device
from sned.devices.design import Shape, design, shape_of
from sned.devices.figures import figures
from sned.devices.fitted import FEWEST, Timed, fit
from sned.devices.host import Wanted, joined
from sned.devices.roofline import Roofline

ROOFLINE = Roofline(figures(find_device("laptop-i5-1135g7"), threads=1), 1)


def statics(shape: Shape) -> dict[str, Any]:
    return dict(shape.family.statics)


def convolution_us(shape: Shape) -> float:
    """Arithmetic, patches written out (not for 1 x 1), and a time to begin."""
    _, inputs, outputs = shape.widths
    held = statics(shape)
    places, window = prod(held["output"]), prod(held["kernel"])
    unrolled = 0 if window * prod(held["stride"]) == 1 else inputs * window * places
    return float(3 + inputs * outputs * window * places / 40_000 + unrolled / 700)


def grouped_us(shape: Shape) -> float:
    """The same for each group, with a time to begin each."""
    _, groups, inputs, outputs = shape.widths
    held = statics(shape)
    places, window = prod(held["output"]), prod(held["kernel"])
    return float(2 + groups * (0.8 + inputs * outputs * window * places / 30_000))


def gemm_us(shape: Shape) -> float:
    """Arithmetic, and reading the weights; what 8 MiB do not hold comes from memory."""
    rows, width, columns = shape.widths
    beyond = max(4 * width * columns - (8 << 20), 0) * (1 / 22_800 - 1 / 60_800)
    return float(1 + rows * width * columns / 50_000 + width * columns / 4_000 + beyond)


@pytest.mark.parametrize(
    ("recipe", "took"), [("plain_conv", convolution_us), ("plain_grouped", grouped_us), ("gemm", gemm_us)]
)
def test_a_sum_of_what_an_op_does_is_told(recipe: str, took: Callable[[Shape], float]) -> None:
    shapes = [shape for shape in design(1, 1200) if shape.family.recipe == recipe]
    shapes = [shape for shape in shapes if statics(shape).get("activation", "") == ""]
    assert len(shapes) > 60
    fitted = fit([Timed(shape, took(shape)) for shape in shapes[::2]], ROOFLINE)
    ratio = [float(fitted.op_us(s.family, s.columns)[0]) / took(s) for s in shapes[1::2]]
    assert np.abs(np.array(ratio) - 1).max() < 0.1
    assert np.median(np.abs(np.array(ratio) - 1)) < 0.01


def test_one_sample_beyond_a_cache_does_not_say_what_is_beyond_it() -> None:
    shapes = [shape for shape in design(1, 1200) if shape.family.recipe == "gemm"]
    inside = [shape for shape in shapes if 4 * shape.widths[1] * shape.widths[2] < 8 << 20]
    beyond = next(shape for shape in shapes if 4 * shape.widths[1] * shape.widths[2] > 8 << 20)
    samples = [Timed(shape, gemm_us(shape)) for shape in inside]
    fitted = fit([*samples, Timed(beyond, 1.25 * gemm_us(beyond))], ROOFLINE)
    large = shape_of("gemm", (1, 8192, 4096))  # 128 MiB
    assert float(fitted.op_us(large.family, large.columns)[0]) == pytest.approx(gemm_us(large), rel=0.4)


def sets_us(shape: Shape) -> float:
    """Of a convolution into blocks of 16 by two threads: lines of sets of four blocks, the busier one's."""
    _, inputs, outputs = shape.widths
    held = statics(shape)
    (lines, places), window = held["output"], prod(held["kernel"])
    blocks = -(-int(outputs) // 16)
    pieces = [min(4, blocks - first) for first in range(0, blocks, 4) for _ in range(lines)]
    half = -(-len(pieces) // 2)
    busier = max(sum(pieces[:half]), sum(pieces[half:]))
    return float(2 + busier * 16 * places * window * inputs / 60_000)


def test_what_the_busier_of_two_threads_does_is_told() -> None:
    two = Roofline(figures(find_device("laptop-i5-1135g7"), threads=2, block=16), 16)
    shapes = [shape for shape in design(16, 2400) if shape.family.recipe == "direct_conv"]
    shapes = [shape for shape in shapes if statics(shape)["activation"] == ""]
    fitted = fit([Timed(shape, sets_us(shape)) for shape in shapes[::2]], two)
    told = shapes[1::2]
    ratio = np.array([float(fitted.op_us(s.family, s.columns)[0]) / sets_us(s) for s in told])
    assert len(told) > 40
    assert np.mean(np.abs(ratio - 1) < 0.1) > 0.95


def reordered_us(shape: Shape) -> float:
    """Elements, and those of a last block whose lines, a page apart, do not all find room in 12 ways."""
    _, channels = shape.widths
    places, last = statics(shape)["inner"], channels % 16
    crowded = last * places if last > 12 and places % 1024 == 0 else 0
    return float(0.3 + channels * places / 9_000 + crowded / 1_500)


def test_channels_that_lie_whole_pages_apart_are_told_to_push_each_other_out() -> None:
    blocked = Roofline(figures(find_device("laptop-i5-1135g7"), threads=1, block=16), 16)
    shapes = [
        shape_of("reorder_output", (1, channels), inner=side * side)
        for side in (7, 14, 16, 24, 28, 32, 56, 64)
        for channels in range(9, 100, 5)
    ]
    crowded = shape_of("reorder_output", (1, 31), inner=1024)
    roomy = shape_of("reorder_output", (1, 28), inner=1024)
    fitted = fit([Timed(shape, reordered_us(shape)) for shape in shapes], blocked)
    for shape in (crowded, roomy):
        told = float(fitted.op_us(shape.family, shape.columns)[0])
        assert told == pytest.approx(reordered_us(shape), rel=0.15)
    few = [shape for shape in shapes if statics(shape)["inner"] != 1024 and statics(shape)["inner"] != 4096]
    fitted = fit([Timed(shape, reordered_us(shape)) for shape in few], blocked)
    longer = float(fitted.op_us(crowded.family, crowded.columns)[0]) - 31 / 28 * float(
        fitted.op_us(roomy.family, roomy.columns)[0]
    )
    assert longer == pytest.approx(15 * 1024 / 1_500, rel=0.5)


def test_of_few_samples_the_usual_ratio_is_told() -> None:
    shapes = [shape for shape in design(1, 600) if shape.family.recipe == "gemm" and shape.widths[0] > 1]

    def slower(shape: Shape) -> float:
        alone = fit([Timed(shapes[0], 1.0)], ROOFLINE).roofline
        return 3.0 * float(alone.launch_us(shape.family, shape.columns, np.zeros(1))[0])

    fitted = fit([Timed(shape, slower(shape)) for shape in shapes[: FEWEST - 1]], ROOFLINE)
    assert fitted.usual == pytest.approx(np.log(3.0), abs=0.2)
    for shape in shapes[FEWEST : 2 * FEWEST]:
        told = float(fitted.op_us(shape.family, shape.columns)[0])
        assert told == pytest.approx(slower(shape), rel=0.5)


@pytest.mark.parametrize("rows", [1.0, 50.0, 3136.0])
def test_what_no_plan_changes_is_not_interpolated(rows: float) -> None:
    shapes = [shape for shape in design(1, 1200) if shape.family.recipe == "gemm"]
    fitted = fit([Timed(shape, gemm_us(shape)) for shape in shapes], ROOFLINE)
    family = shape_of("gemm", (1, 1, 1)).family
    wanted = [Wanted(family, (m, 8.0, 8.0), (m, 768.0, 3072.0)) for m in (1.0, 50.0, 3136.0)]
    table = fitted.tables(wanted, 1)[[want.low[0] for want in wanted].index(rows)]
    columns = [np.array([rows] * 3), np.array([96.0, 333.0, 700.0]), np.array([3000.0, 50.0, 1111.0])]
    assert table(columns) == pytest.approx(fitted.op_us(family, columns), rel=0.05)


def test_equal_families_share_a_table_over_all_widths_that_plans_change() -> None:
    family = shape_of("gemm", (1, 1, 1)).family
    made = joined([
        Wanted(family, (9.0, 4.0, 7.0), (9.0, 8.0, 7.0)),
        Wanted(family, (9.0, 2.0, 7.0), (9.0, 6.0, 7.0)),
        Wanted(family, (9.0, 2.0, 5.0), (9.0, 6.0, 5.0)),
    ])  # fmt: skip
    assert made[0] == made[1] == Wanted(family, (9.0, 2.0, 7.0), (9.0, 8.0, 7.0))
    assert made[2] == Wanted(family, (9.0, 2.0, 5.0), (9.0, 6.0, 5.0))
