"""A network that writes into its inputs comes through every stage as one that does not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import sned
from sned.measure import agreement
from sned.repair.match import match


class Clean(nn.Module):
    """Normalises its input, then classifies it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(8, 4)

    def normalised(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 3.0

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.body(self.normalised(x)).mean((2, 3)))
        return made


class Overwriting(Clean):
    """The same in the place of the input."""

    def normalised(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).mul_(3.0)


def batches() -> list[Tensor]:
    return list(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def labelled() -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.arange(16) % 4) for x in batches()]


def through_all_stages(kind: type[Clean], folder: Path) -> tuple[nn.Module, float]:
    """A network pruned, repaired, matched, trained and exported, and how often it agrees with the dense one."""
    torch.manual_seed(0)
    dense, given, lessons = kind().eval(), batches(), labelled()
    pruned = sned.prune(
        dense,
        given[0],
        budget=sned.Budget(parameters="60%"),
        calibration=given,
    ).model
    matched = match(pruned, dense, given, steps=4).model
    tuned = sned.finetune(matched, lessons, teacher=dense, validation=lessons, epochs=2).model
    sned.export(tuned, given[0], to="onnx", out=folder / f"{kind.__name__}.onnx")
    share = agreement(dense, tuned, given)
    for now, then in zip([*given, *(x for x, _ in lessons)], batches() * 2, strict=True):
        assert torch.equal(now, then)
    return tuned, share


def test_it_comes_out_as_the_one_that_does_not(tmp_path: Path) -> None:
    clean, wanted = through_all_stages(Clean, tmp_path)
    overwriting, share = through_all_stages(Overwriting, tmp_path)
    assert share == wanted
    state = clean.state_dict()
    for name, tensor in overwriting.state_dict().items():
        torch.testing.assert_close(tensor, state[name])
