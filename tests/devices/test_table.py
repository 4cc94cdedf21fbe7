"""Interpolation, against SciPy's."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from sned.devices.table import Table


def a_table(rng: np.random.Generator, *lengths: int) -> Table:
    axes = tuple(np.cumsum(rng.uniform(0.5, 2.0, length)) for length in lengths)
    return Table(axes, rng.uniform(1, 2, lengths))


@pytest.mark.parametrize("lengths", [(2,), (5,), (3, 2), (4, 3, 2), (2, 2, 2, 2)])
def test_inside_the_grid_it_is_multilinear(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    table = a_table(rng, *lengths)
    points = [rng.uniform(axis[0], axis[-1], 50) for axis in table.axes]
    expected = RegularGridInterpolator(table.axes, table.values)(np.stack(points, 1))
    np.testing.assert_allclose(table(points), expected)


def test_at_the_points_of_the_grid_it_is_exact() -> None:
    table = a_table(np.random.default_rng(1), 3, 4)
    points = [grid.ravel() for grid in np.meshgrid(*table.axes, indexing="ij")]
    np.testing.assert_allclose(table(points), table.values.ravel())


def test_beyond_the_grid_it_goes_on_straight_and_not_below_zero() -> None:
    table = Table((np.array([1.0, 2.0, 4.0]),), np.array([1.0, 2.0, 8.0]))
    np.testing.assert_allclose(table([np.array([0.5, 0.0, -3.0, 5.0])]), [0.5, 0.0, 0.0, 11.0])


def test_an_axis_of_one_coordinate_counts_for_nothing() -> None:
    table = Table((np.array([7.0]), np.array([0.0, 1.0])), np.array([[3.0, 5.0]]))
    np.testing.assert_allclose(table([np.array([7.0, 9.0]), np.array([0.5, 1.0])]), [4.0, 5.0])


def test_a_table_without_axes_is_a_number() -> None:
    np.testing.assert_allclose(Table((), np.array(2.5))([]), [2.5])
