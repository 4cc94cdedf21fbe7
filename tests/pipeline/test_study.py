"""What is measured on the way is measured as the network runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.pipeline.study import measure
from sned.timing import Latency


class OneSize(nn.Module):
    """Runs at one batch size only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.more, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.more(self.norm(self.conv(x)).relu()).relu().mean((2, 3))
        return self.head(y.view(self.batch, 8))


def images(count: int, batch: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(batch))


def test_a_network_of_one_batch_size_is_timed_at_that(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []

    def timed(files: Mapping[str, Any], given: Mapping[str, Any], **options: Any) -> dict[str, Latency]:
        fed.extend(value.shape for value in given.values())
        return {name: Latency(1.0, 1.0, 1.0, 1, 1) for name in files}

    monkeypatch.setattr(importlib.import_module("sned.pipeline.study"), "measure_onnx", timed)
    for module in ("study", "choice", "road"):
        monkeypatch.setattr(f"sned.pipeline.{module}.measure", measure)
    model, inputs = OneSize(6).eval(), images(60, 6)
    sned.prune(model, inputs[0], budget=sned.Budget(macs="50%"), calibration=inputs)
    assert fed
    assert set(fed) == {(6, 3, 8, 8)}


@pytest.mark.parametrize("saliency", [None, "taylor", "fisher", "apoz"])
def test_a_network_of_one_batch_size_is_pruned_on_whole_batches(saliency: str | None) -> None:
    model, inputs = OneSize(6).eval(), images(264, 6)
    options = {"budget": sned.Budget(macs="50%"), "calibration": inputs, "saliency": saliency}
    assert sned.prune(model, inputs[0], **options).plan.removed


def test_random_inputs_come_in_whole_batches_too() -> None:
    for batch in (6, 128):
        model = OneSize(batch).eval()
        result = sned.prune(model, images(batch, batch)[0], budget=sned.Budget(macs="50%"))
        assert result.plan.removed
