"""Which entries stay: as many as asked, the worthiest, in the shape asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sned.calibration.patterns import Pattern
from sned.errors import PlanError

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(1, 3))


def losses(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.01


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 99), st.floats(0.05, 1.0))
def test_single_weights_keep_the_worthiest(shape: tuple[int, int, int], seed: int, density: float) -> None:
    loss = losses(shape, seed)
    stay = Pattern.parse("weight").choose(loss, density)
    assert int(stay.sum()) == min(max(round(density * loss.numel()), 1), loss.numel())
    if not bool(stay.all()):
        assert float(loss[stay].min()) >= float(loss[~stay].max())


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from([(2, 4), (4, 8), (1, 4), (1, 2)]))
def test_n_of_every_m_inputs_stay(shape: tuple[int, int, int], seed: int, ratio: tuple[int, int]) -> None:
    keep, of = ratio
    loss = losses(shape, seed)
    stay = Pattern.parse(f"{keep}:{of}").choose(loss, keep / of).numpy()
    whole = shape[1] // of * of
    for output, position in np.ndindex(shape[0], shape[2]):
        for start in range(0, whole, of):
            here = slice(start, start + of)
            mine, worth = stay[output, here, position], loss[output, here, position].numpy()
            assert mine.sum() == keep
            assert worth[mine].min() >= worth[~mine].max()
    assert stay[:, whole:].all()


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from([(1, 4), (4, 1), (2, 2), (3, 2)]), st.floats(0.1, 0.9))
def test_blocks_go_whole(
    shape: tuple[int, int, int], seed: int, block: tuple[int, int], density: float
) -> None:
    loss = losses(shape, seed)
    stay = Pattern.parse(f"{block[0]}x{block[1]}").choose(loss, density)
    for position in range(shape[2]):
        for i in range(0, shape[0], block[0]):
            for j in range(0, shape[1], block[1]):
                part = stay[i : i + block[0], j : j + block[1], position]
                assert bool(part.all()) or not bool(part.any())


def test_four_of_eight_is_met_step_by_step() -> None:
    loss = losses((3, 16, 1), 0)
    pattern = Pattern.parse("4:8")
    counts = [int(pattern.choose(loss, density).sum()) for density in (1.0, 0.8, 0.6, 0.5)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 3 * 8


@pytest.mark.parametrize("text", ["", "4:2", "0:4", "2:2", "1x1", "0x4", "weights", "2:4:8", "-1x4"])
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"'weight' \(single ones\), 'N:M' such as '2:4'"):
        Pattern.parse(text)
