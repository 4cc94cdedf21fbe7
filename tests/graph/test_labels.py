"""Boxes of labels, and how a reshape is divided into runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sned.graph.labels import Box, covering, line, matching_runs, squeezed, varying_axes


@pytest.mark.parametrize(
    ("old", "new", "runs"),
    [([2, 6, 5], [2, 2, 3, 5], [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]),
     ([2, 3, 4], [6, 4], [((0, 1), (0,)), ((2,), (1,))]),
     ([4, 6], [6, 4], [((0, 1), (0, 1))]),
     ([2, 3], [2, 3], [((0,), (0,)), ((1,), (1,))]),
     ([2, 0, 12], [2, 0, 3, 4], [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))]),
     ([2, 0, 5], [0, 7], [((0, 1, 2), (0, 1))])],
)  # fmt: skip
def test_matching_runs(
    old: list[int], new: list[int], runs: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    assert matching_runs(old, new) == runs


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_runs_cover_every_axis_once_with_equal_products(old: list[int], chance: object) -> None:
    factors = [f for size in old for f in _primes(size)]
    new: list[int] = []
    for factor in factors:
        if new and chance.random() < 0.5:  # type: ignore[attr-defined]
            new[-1] *= factor
        else:
            new.append(factor)
    new.insert(chance.randrange(len(new) + 1), 1)  # type: ignore[attr-defined]
    runs = matching_runs(old, new)
    assert [a for left, _ in runs for a in left] == list(range(len(old)))
    assert [b for _, right in runs for b in right] == list(range(len(new)))
    for left, right in runs:
        assert np.prod([old[a] for a in left], dtype=int) == np.prod([new[b] for b in right], dtype=int)


def _primes(number: int) -> list[int]:
    found = []
    for p in (2, 3, 5):
        while number % p == 0:
            found.append(p)
            number //= p
    return found


def test_a_line_varies_along_one_axis() -> None:
    box = line(np.arange(5), 1, 4)
    assert box.ids.shape == (1, 5, 1, 1)
    assert box.axes == {1}
    assert covering((box,), 1) is box
    assert covering((box,), 0) is None


def test_moving_a_rectangle_is_a_permutation_of_its_array() -> None:
    ids = np.arange(12).reshape(1, 3, 1, 4)
    box = Box(ids, 3, {1: np.array([20, 21, 22])})
    moved = box.moved({3: 0, 1: 2}, 3)
    assert moved.free == 0
    assert list(moved.slabs) == [2]
    np.testing.assert_array_equal(moved.ids[:, 0, :], ids[0, :, 0, :].T)


def test_rows_are_those_along_the_free_axis_each_once() -> None:
    ids = np.broadcast_to(np.arange(6).reshape(1, 2, 3), (4, 2, 3))
    np.testing.assert_array_equal(Box(ids, 2, {1: np.array([7, 8])}).rows(), [[0, 1, 2], [3, 4, 5]])


def test_varying_axes_and_what_is_left_of_the_others() -> None:
    array = np.broadcast_to(np.arange(3).reshape(1, 3, 1), (2, 3, 4))
    assert varying_axes(array) == (1,)
    assert squeezed(array, (1,)).shape == (1, 3, 1)
    assert varying_axes(np.zeros((2, 1), int)) == ()
