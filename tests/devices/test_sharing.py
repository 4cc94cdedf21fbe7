import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sned.devices.design import shape_of, sliding
from sned.devices.sharing import unevenness

COUNTS = st.integers(1, 40)


def busiest(pieces: list[int], threads: int) -> float:
    """In even shares, by giving every piece to somebody: the first ones get one more where they do not go up."""
    share, left = divmod(len(pieces), threads)
    work, at = [], 0
    for thread in range(threads):
        take = share + (thread < left)
        work.append(sum(pieces[at : at + take]))
        at += take
    return max(work) * threads / sum(pieces)


@given(
    images=st.integers(1, 3), channels=st.integers(1, 400), side=st.integers(1, 20), threads=st.integers(2, 9)
)
def test_of_a_convolution_into_blocks_a_piece_is_a_line_of_four_blocks(
    images: int, channels: int, side: int, threads: int
) -> None:
    shape = shape_of("direct_conv", (images, 3, channels), activation="", **sliding(3, 1, side))
    blocks = math.ceil(channels / 16)
    of_image = [min(4, blocks - first) for first in range(0, blocks, 4) for _ in range(side)]
    got = unevenness(shape.family, shape.columns, 16, threads)
    np.testing.assert_allclose(got, [busiest(of_image * images, threads)])


@given(images=st.integers(1, 3), groups=COUNTS, threads=st.integers(2, 9))
def test_of_a_grouped_convolution_a_piece_is_a_group(images: int, groups: int, threads: int) -> None:
    window = sliding(3, 1, 8)
    for shape in (
        shape_of("plain_grouped", (images, groups, 2, 3), activation="", **window),
        shape_of("plain_depthwise", (images, groups), activation="", multiplier=1, **window),
    ):
        got = unevenness(shape.family, shape.columns, 16, threads)
        np.testing.assert_allclose(got, [busiest([1] * (images * groups), threads)])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_other_ops_are_shared_evenly(threads: int) -> None:
    shape = shape_of("blocked_conv", (1, 64, 80), activation="", **sliding(3, 1, 28))
    assert unevenness(shape.family, shape.columns, 16, threads) == 1
    assert unevenness(shape_of("gemm", (1, 3, 5)).family, (), 16, threads) == 1


def test_one_thread_does_all_there_is() -> None:
    shape = shape_of("direct_conv", (1, 3, 80), activation="", **sliding(3, 1, 28))
    assert unevenness(shape.family, shape.columns, 16, 1) == 1
