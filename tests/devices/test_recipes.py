"""Recipes: every op that can be timed is a model that runs, and its grid covers what is asked of it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from sned.devices.grids import SET, conv_coordinates, reorder_coordinates
from sned.devices.kernel_rules import POINTWISE
from sned.devices.layout import Family
from sned.devices.probe import block_size, open_op
from sned.devices.recipes import RECIPES

CONV: dict[str, Any] = {
    "kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "spatial": (9, 8),
    "output": (5, 4), "activation": "",
}  # fmt: skip
CONV_1D: dict[str, Any] = {
    "kernel": (3,), "stride": (1,), "padding": (1,), "dilation": (1,), "spatial": (9,), "output": (9,),
    "activation": "",
}  # fmt: skip
DECONV: dict[str, Any] = {**CONV, "kernel": (2, 2), "padding": (0, 0), "spatial": (4, 4), "output": (8, 8)}
POOL: dict[str, Any] = {
    "op": "MaxPool",
    "kernel": (3, 3),
    "stride": (2, 2),
    "padding": (1, 1),
    "spatial": (8, 8),
    "output": (4, 4),
}
UNARY = (*dict.fromkeys(POINTWISE.values()),)
CASES: list[tuple[str, dict[str, Any], tuple[float, ...], tuple[float, ...]]] = [
    ("direct_conv", CONV, (1, 1, 5), (1, 7, 70)),
    ("blocked_conv", CONV, (1, 1, 1), (1, 64, 100)),
    ("blocked_conv", {**CONV, "activation": "Clip"}, (1, 32, 32), (1, 32, 32)),
    ("plain_conv", CONV, (1, 1, 1), (1, 66, 30)),
    ("plain_conv", {**CONV, "activation": "HardSigmoid"}, (1, 1, 1), (1, 18, 18)),
    ("plain_conv", CONV_1D, (1, 2, 2), (1, 5, 5)),
    ("blocked_depthwise", CONV, (1, 1), (1, 60)),
    ("plain_depthwise", {**CONV, "multiplier": 2}, (1, 2), (1, 60)),
    ("blocked_grouped", CONV, (1, 1, 1, 1), (1, 2, 32, 32)),
    ("plain_grouped", CONV, (1, 1, 1, 1), (1, 4, 6, 6)),
    ("deconv", DECONV, (1, 1, 1), (1, 8, 8)),
    ("blocked_pool", POOL, (1, 16), (1, 64)),
    ("plain_pool", {**POOL, "op": "AveragePool"}, (1, 1), (1, 64)),
    ("reorder_input", {"inner": 64}, (1, 1), (1, 70)),
    ("reorder_output", {"inner": 64}, (1, 1), (1, 70)),
    *(("elementwise", {"op": op, "inputs": 1}, (10,), (10_000,)) for op in UNARY),
    *(("elementwise", {"op": op, "inputs": 2}, (10,), (10_000,)) for op in ("Add", "Mul", "Div")),
    ("norm", {"inner": 64}, (1, 1), (1, 33)),
    ("concat", {"inputs": 3}, (30,), (300,)),
    ("gemm", {"op": ""}, (1, 1, 10), (1, 100, 10)),
    ("matmul", {"op": ""}, (2, 5, 1, 5), (2, 5, 8, 5)),
    ("reduce", {"op": "ReduceMean"}, (1, 64), (80, 64)),
    ("rows", {"op": "Softmax"}, (4, 4), (8, 9)),
    ("rows", {"op": "LayerNormalization"}, (4, 4), (8, 9)),
    ("copy", {"op": "Transpose"}, (10,), (1000,)),
    ("reshape", {"op": "Reshape"}, (), ()),
]  # fmt: skip


def test_every_recipe_has_a_case() -> None:
    assert {recipe for recipe, *_ in CASES} == RECIPES.keys()


@pytest.mark.parametrize(("recipe", "statics", "low", "high"), CASES)
def test_every_point_is_a_model_that_runs(
    recipe: str, statics: dict[str, Any], low: tuple[float, ...], high: tuple[float, ...]
) -> None:
    block = block_size()
    if block == 1 and recipe.startswith(("direct", "blocked", "reorder")):
        pytest.skip("this runtime keeps images as they are")
    family = Family(recipe, tuple(sorted(statics.items())))
    for point in product(*RECIPES[recipe].grid(low, high, block, 2)):
        session = open_op(RECIPES[recipe].model(family, point, block), 1)
        feeds = {value.name: np.ones(value.shape, np.float32) for value in session.get_inputs()}
        outputs = session.run(None, feeds)
        assert np.isfinite(outputs[0]).all()
        if "output" in statics:
            assert outputs[0].shape[2:] == statics["output"]


@pytest.mark.parametrize("block", [1, 8, 16])
@pytest.mark.parametrize("density", [2, 3])
@pytest.mark.parametrize(("recipe", "statics", "low", "high"), CASES)
def test_the_grid_covers_what_is_asked(
    recipe: str,
    statics: dict[str, Any],
    low: tuple[float, ...],
    high: tuple[float, ...],
    density: int,
    block: int,
) -> None:
    del statics
    if block == 1 and recipe.startswith(("direct", "blocked", "reorder")):
        pytest.skip("no such kernels without blocks")
    axes = RECIPES[recipe].grid(low, high, block, density)
    ends = RECIPES[recipe].coordinates([np.array(pair) for pair in zip(low, high, strict=True)], block)
    assert len(axes) == len(ends)
    for axis, end in zip(axes, ends, strict=True):
        assert (np.diff(axis) > 0).all()
        if recipe not in ("direct_conv", "plain_conv"):  # they stand in for part of the widths only
            assert axis[-1] >= end[1]
    assert np.prod([len(axis) for axis in axes]) <= 100


def test_sets_of_blocks() -> None:
    outputs = np.arange(1.0, 300.0)
    ones = np.ones_like(outputs)
    _, inputs, before, last = conv_coordinates(True)([ones, outputs, outputs], 16)
    np.testing.assert_array_equal(inputs, np.ceil(outputs / 16))
    np.testing.assert_array_equal(before * SET + last, np.ceil(outputs / 16))
    assert set(last) == {1, 2, 3, 4}


def test_last_blocks_of_reorders() -> None:
    channels = np.arange(1.0, 100.0)
    _, before, rest = reorder_coordinates([np.ones_like(channels), channels], 8)
    np.testing.assert_array_equal(before * 8 + rest, channels)
    assert set(rest) == set(range(1, 9))
