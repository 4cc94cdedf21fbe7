from dataclasses import replace

import pytest

from sned.report import GroupLoss, Report, State
from sned.report.rows import headline, rows, verdicts


def test_every_figure_that_was_obtained_has_a_row_with_its_source(report: Report) -> None:
    by_name = {row.name: row for row in rows(report)}
    assert list(by_name) == [
        "accuracy",
        "agreement",
        "latency_ms",
        "latency_p90_ms",
        "predicted_latency_ms",
        "macs",
        "parameters",
        "size_bytes",
    ]
    latency = by_name["latency_ms"]
    assert (latency.before, latency.after, latency.change) == ("2.04 ms", "1.00 ms", "×0.49")
    assert latency.how == "measured: ONNX Runtime 1.31.0, 1 thread, 200 interleaved runs"
    assert latency.fraction == pytest.approx(1 / 2.04)
    assert by_name["accuracy"].change == "−0.44 pp"
    assert by_name["accuracy"].fraction is None
    assert by_name["predicted_latency_ms"].how == "predicted for host, batch 1"


def test_what_was_not_obtained_is_left_out_or_dashed(report: Report) -> None:
    bare = replace(report, before=State(macs=2e6), after=State(macs=1e6, parameters=5))
    assert [(row.name, row.before, row.change) for row in rows(bare)] == [
        ("macs", "2.00 M", "×0.50"),
        ("parameters", "–", "–"),
    ]
    assert headline(replace(report, before=State(), after=State())) == "Nothing was measured"


def test_the_headline_says_slower_when_it_is(report: Report) -> None:
    assert headline(report) == "2.04× faster · 98.23 % accuracy (−0.44 pp) · 49 % of the parameters"
    turned = replace(report, before=report.after, after=report.before)
    assert headline(turned).startswith("2.04× slower")


@pytest.mark.parametrize(
    ("budget", "limits", "met", "sentence"),
    [
        (
            {"latency_ms": "50%"},
            {"latency_ms": 1.02},
            True,
            "Latency, median at most 1.02 ms (50% of the dense network's): 1.00 ms measured",
        ),
        (
            {"latency_ms": "0.9"},
            {"latency_ms": 0.9},
            False,
            "Latency, median at most 0.900 ms: 1.00 ms measured",
        ),
        ({"macs": "30M"}, {"macs": 30e6}, True, "MACs at most 30.0 M: 25.1 M counted"),
        ({"energy_mj": "3"}, {"energy_mj": 3.0}, None, "Energy at most 3.00 mJ: not measured"),
        ({"max_loss": "0.01"}, {"max_loss": 0.01}, True, "Accuracy given up at most 1.00 %: 0.44 % measured"),
        (
            {"max_loss": "0.001"},
            {"max_loss": 0.001},
            False,
            "Accuracy given up at most 0.10 %: 0.44 % measured",
        ),
    ],
)
def test_each_part_of_the_budget_gets_a_verdict(
    report: Report, budget: dict[str, str], limits: dict[str, float], met: bool | None, sentence: str
) -> None:
    asked = replace(report.asked, budget=budget, limits=limits)
    [verdict] = verdicts(replace(report, asked=asked))
    assert (verdict.met, verdict.sentence) == (met, sentence)


def test_without_a_measurement_the_prediction_is_judged(report: Report) -> None:
    [verdict] = verdicts(replace(report, after=replace(report.after, latency=None)))
    assert (verdict.met, verdict.sentence[-18:]) == (True, "0.970 ms predicted")


def test_a_sparsity_is_a_floor_met_to_whole_units(report: Report) -> None:
    asked = replace(report.asked, budget={"sparsity": "0.5"}, limits={"sparsity": 0.5})
    halved = (GroupLoss("a", 10, 5), GroupLoss("b", 9, 5))
    [verdict] = verdicts(replace(report, asked=asked, groups=halved))
    assert verdict.met is True
    [verdict] = verdicts(replace(report, asked=asked, groups=(GroupLoss("a", 10, 9),)))
    assert verdict.met is False
