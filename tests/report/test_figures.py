import pytest

from sned.report.figures import (
    count,
    difference,
    milliseconds,
    percent,
    ratio,
    score,
    significant,
    size,
    written,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1_000, "1.00 k"),
        (57_200_000, "57.2 M"),
        (1.5e9, "1.50 G"),
        (0.25, "0.250"),
    ],
)
def test_counts_have_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.001234, "0.00123"),
    ],
)
def test_significant_digits_never_need_powers_of_ten(value: float, text: str) -> None:
    assert significant(value) == text


def test_units_stand_beside_their_figures() -> None:
    assert milliseconds(0.5123) == "0.512 ms"
    assert size(5_400_000) == "5.40 MB"
    assert size(12) == "12 B"
    assert percent(0.9867) == "98.7 %"
    assert score(0.9867) == "98.67 %"
    assert score(23.456) == "23.46"
    assert written("latency_ms", 2) == "2.00 ms"
    assert written("of_my_own", 2) == "2.00"


def test_change_is_a_ratio_for_costs_and_points_for_scores() -> None:
    assert ratio(2.0, 1.0) == "×0.50"
    assert ratio(2.0, 5.0) == "×2.50"
    assert ratio(0.0, 5.0) == "–"
    assert difference(0.9867, 0.9823) == "−0.44 pp"
    assert difference(0.90, 0.91) == "+1.00 pp"
    assert difference(20.0, 22.5) == "+2.5"
    assert difference(0.98, 0.98) == "±0"
