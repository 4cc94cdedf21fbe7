import numpy as np
import pytest

from sned.export.parity import Parity, compare, compare_runs


def test_differences_are_those_of_the_worst_element_of_any_output() -> None:
    reference = [np.array([1.0, 2.0]), np.array([10.0, -100.0])]
    parity = compare(reference, [np.array([1.0, 2.5]), np.array([11.0, -100.0])])
    assert parity.max_abs_diff == 1.0
    assert parity.max_rel_diff == 0.25  # 0.5 of 2 outweighs 1 of 100


def test_agreement_counts_rows_with_the_same_largest_class() -> None:
    reference = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    other = np.array([[0.2, 0.8], [0.1, 0.9], [0.4, 0.6], [0.9, 0.1]])
    parity = compare([reference], [other])
    assert (parity.top1_agreement, parity.rows) == (0.75, 4)


def test_pixels_of_a_segmentation_vote_over_the_class_axis() -> None:
    reference = np.zeros((1, 3, 2, 2))
    reference[0, 1] = 1
    other = reference.copy()
    other[0, 2, 0, 0] = 2
    assert compare([reference], [other]).top1_agreement == 0.75


@pytest.mark.parametrize(
    ("reference", "got", "expected"),
    [
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([], [], 0.0),
    ],
)
def test_what_is_not_finite_must_be_the_same(
    reference: list[float], got: list[float], expected: float
) -> None:
    assert compare([np.array(reference)], [np.array(got)]).max_abs_diff == expected


def test_shapes_that_differ_never_agree() -> None:
    assert compare([np.zeros((2, 3))], [np.zeros((2, 4))]).max_abs_diff == np.inf


def test_nothing_with_classes_gives_no_agreement() -> None:
    assert compare([np.arange(3)], [np.arange(3)]).top1_agreement is None


def test_several_runs_are_one_comparison() -> None:
    """Stacked by hand; the second run's answers are small, and its differences as those of the first."""
    reference = [np.array([[4.0, -8.0], [2.0, 1.0]]), np.array([[0.01, 0.0]])]
    got = [np.array([[4.0, -8.0], [2.0, 1.5]]), np.array([[0.0, 0.5]])]
    parity = compare_runs(([ours], [theirs]) for ours, theirs in zip(reference, got, strict=True))
    assert parity == compare([np.concatenate(reference)], [np.concatenate(got)])
    assert parity.max_rel_diff == 0.5 / 8
    assert (parity.top1_agreement, parity.rows) == (2 / 3, 3)
    assert parity.error == pytest.approx(np.sqrt((0.25 + 0.25 + 1e-4) / (16 + 64 + 4 + 1 + 1e-4)))


def test_one_run_of_another_shape_spoils_all() -> None:
    right, wrong = np.ones((1, 2)), np.ones((1, 3))
    parity = compare_runs([([right], [right]), ([right], [wrong]), ([right], [right])])
    assert parity.max_abs_diff == parity.max_rel_diff == parity.error == np.inf


def test_a_tolerance_is_relative_and_a_hundredth_of_it_absolute() -> None:
    assert Parity(1.0, 1e-6, None).within(1e-4)
    assert Parity(1e-6, 1.0, None).within(1e-4)
    assert not Parity(1e-5, 1e-3, None).within(1e-4)
