"""Ranges of activations in 8 bits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sned

pytest.importorskip("openvino")
pytest.importorskip("nncf")


class Tabular(nn.Module):
    """A category and two features of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.layers = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        return self.layers(torch.cat([self.table(ids), features], 1))


def test_rare_large_features_are_not_cut_off(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids, features = Tabular().eval(), torch.randint(50, (256,)), (1.5 * torch.randn(256, 2)).exp()
    made = sned.export(
        model,
        (ids[:1], features[:1]),
        to="openvino",
        quantize="int8",
        calibration=[(ids, features)],
        out=tmp_path / "m.xml",
        runs=0,
    )
    own, got = model(ids, features), made.module()(ids, features)
    assert float((own - got).norm() / own.norm()) < 0.2
