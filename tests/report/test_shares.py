import numpy as np
import pytest
import torch
from torch import nn

from sned.devices import Costs
from sned.graph import trace
from sned.report.shares import shares


class Multiplications:
    """The cost of Linear(6, 10), Linear(10, 20), Linear(20, 3), written out."""

    def evaluate(self, counts: np.ndarray, of: object = None) -> Costs:
        a, b = counts[:, 0], counts[:, 1]
        macs = 6 * a + a * b + b * 3
        parameters = 7 * a + (a + 1) * b + (b + 1) * 3
        unknown = np.full(len(counts), np.nan)
        return Costs(1 + macs / 100, macs, parameters, 4 * parameters, unknown, unknown)

    @property
    def capacity(self) -> dict[str, float]:
        return {}

    def layers(self, counts: np.ndarray) -> list[object]:
        raise AssertionError("not asked for")


def test_a_share_is_what_goes_with_the_group() -> None:
    network = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    graph = trace(network, torch.randn(2, 6))
    first, second = shares(graph, Multiplications())
    macs = 6 * 10 + 10 * 20 + 20 * 3
    assert first.macs == pytest.approx(1 - (6 + 20 + 60) / macs)
    assert second.macs == pytest.approx(1 - (60 + 10 + 3) / macs)
    assert first.parameters == pytest.approx(1 - (7 + 40 + 63) / (70 + 220 + 63))
    assert second.latency == pytest.approx(1 - (1 + 0.73) / (1 + macs / 100))
