"""What records come to, and the prunings that are drawn."""

import numpy as np
import pytest
import torch

from benchmarks.latency_model import (
    near_dense,
    plan_of,
    quiet,
    random_plans,
    rank_correlation,
    subjects,
    summary,
)
from sned.devices.timer import YARDSTICK
from sned.graph import trace
from tests.devices.networks import Mixed, trained


def record(
    place: int, measured: float, told: float, network: str = "a", threads: int = 1
) -> dict[str, object]:
    told_ms = {f"{which}_ms": told for which in ("calibrated", "anchored", "estimated")}
    return {
        "kind": "prediction", "network": network, "pruning": place, "threads": threads, "measured_ms": measured,
        "once_ms": measured * 1.01, **told_ms,
    }  # fmt: skip


def test_busy_processes_do_not_count() -> None:
    rounds = [{YARDSTICK: took} for took in (1.0, 1.02, 1.05, 1.6)]
    assert quiet(rounds, float("inf")) == rounds[:2]
    assert quiet(rounds, 0.98) == rounds[:1]  # an earlier one found the machine quicker
    assert quiet([], 1.0) == []


def test_what_records_come_to() -> None:
    records = [
        record(place, 10.0 - place, (10.0 - place) * (1.05 if place < 4 else 1.15)) for place in range(5)
    ]
    text = summary([*records, record(0, 1.0, 3.0, "b")])
    assert "6 predictions, 2 networks, 1 thread(s)" in text
    assert "once       within 10 % 100.0%" in text
    assert "calibrated within 10 %  66.7%, 20 %  83.3%, a factor of 2  83.3%" in text
    budgets = [{"kind": "budget", "threads": 2, "of_asked": share} for share in (0.8, 0.9, 1.0, 1.1)]
    assert "4 budgets, 2 thread(s): at most 1.05 of what was asked 75.0%; under 0.85 of it 25.0%" in summary(
        budgets
    )
    assert "least rank correlation not known, from" in summary([record(0, 1.0, 1.0)])
    assert summary([]) == "No records yet."


def test_ranks_are_of_prunings_near_the_dense_network() -> None:
    records = [record(place, 10.0 - place, 10.0 - place) for place in range(6)]
    records.append(record(6, 1.0, 99.0))  # a tenth of the dense latency
    assert rank_correlation(near_dense(records), "calibrated") == pytest.approx(1.0)
    assert rank_correlation(records, "calibrated") == pytest.approx(1 - 6 * (6 * 1 + 36) / (7 * (49 - 1)))
    assert np.isnan(rank_correlation(near_dense(records[:4]), "calibrated"))


def test_prunings_are_plans_of_the_network() -> None:
    graph = trace(trained(Mixed()), torch.randn(1, 3, 24, 24))
    plans = random_plans(graph, 4)
    assert plans.shape == (5, len(graph.groups))
    assert (plans[0] == [group.size for group in graph.groups]).all()
    for counts in plans:
        np.testing.assert_array_equal(plan_of(graph, counts).counts(graph), counts)
    assert plans[1].sum() < plans[-1].sum() < plans[0].sum()


def test_there_are_twenty_networks_and_more() -> None:
    assert len(subjects()) >= 20
