"""A pass in train mode is kept where it does more than the one in eval mode, and only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned.graph.trace import trace

tracing = importlib.import_module("sned.graph.trace")  # whose name in the package is that of the function

Change = Callable[[nn.Module, Tensor], Any]


class Trained(nn.Module):
    """A convolution and a head; in train mode something is done in between."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.other = nn.Conv2d(3, 8, 3)
        self.calls = torch.zeros(())
        self.change = change

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x)).relu()
        beside = self.other(x)
        if not self.training:
            return self.head(y.mean((2, 3))) + self.head(beside.mean((2, 3)))
        changed = self.change(self, y)
        if isinstance(changed, tuple):
            return self.head(y.mean((2, 3))) + self.head(beside.mean((2, 3))), *changed
        return self.head(changed.mean((2, 3))) + self.head(beside.mean((2, 3)))


def drop_path(_: nn.Module, y: Tensor) -> Tensor:
    return y * y.new_empty((len(y), 1, 1, 1)).bernoulli_(0.9).div_(0.9)


NOISE: dict[str, Change] = {
    "nothing": lambda _, y: y,
    "dropout": lambda _, y: F.dropout(y, 0.3, training=True),
    "dropout of channels": lambda _, y: F.dropout2d(y, p=0.3, training=True, inplace=True),
    "dropout of paths": drop_path,
    "noise": lambda _, y: y + 0.1 * torch.randn_like(y),
    "a mask": lambda _, y: y * torch.bernoulli(torch.full_like(y, 0.9)) / 0.9,
}

MORE: dict[str, Change] = {
    "a view": lambda _, y: y.view(-1, 8, 6, 6),
    "drawn in a size": lambda _, y: y + torch.randn(len(y), 8, 1, 1),
    "met by another": lambda m, y: y + m.other(torch.ones_like(y[:, :3])).mean(),
    "returned": lambda _, y: (y,),
    "a loss": lambda _, y: (y.square().mean(),),
    "scaled by its size": lambda _, y: y / y.shape[1],
    "the order of channels": lambda _, y: y.flip(1),
}


@pytest.mark.parametrize("case", NOISE)
def test_noise_alone_tells_nothing(case: str) -> None:
    graph = trace(Trained(NOISE[case]), torch.randn(2, 3, 8, 8))
    assert graph.recorded.main.asked
    assert graph.recorded.trained is None
    assert [group.size for group in graph.groups] == [8]


@pytest.mark.parametrize("case", MORE)
def test_what_training_alone_does_is_kept(case: str) -> None:
    assert trace(Trained(MORE[case]), torch.randn(2, 3, 8, 8)).recorded.trained is not None


class Apart(nn.Module):
    """The same change in a module of its own, which has no weights."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, y: Tensor) -> Any:
        return self.change(self, y) if self.training else y


def apart(change: Change) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), Apart(change), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))


class Asking(nn.Module):
    """Does itself what is to be done while a module without weights is in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Conv2d(3, 8, 3), Apart(MORE["a view"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop.forward(self.body(x)) if self.training else self.body(x)
        return y.view(-1, 8, 6, 6).mean((2, 3)) if self.drop.training else y.mean((2, 3))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of each module that is recorded in train mode, of each one of those that are recorded beside each other."""
    seen: list[str] = []
    record = tracing.record

    def noted(model: nn.Module, *args: Any, **options: Any) -> Any:
        held = model if isinstance(model, tracing.Beside) else [model]
        seen.extend(type(module).__name__ for module in held if options.get("training"))
        return record(model, *args, **options)

    monkeypatch.setattr(tracing, "record", noted)
    return seen


@pytest.mark.parametrize("case", NOISE)
def test_modules_without_weights_that_draw_noise_are_looked_at_alone(case: str, passes: list[str]) -> None:
    graph = trace(apart(NOISE[case]), torch.randn(2, 3, 8, 8))
    assert graph.recorded.trained is None
    assert passes == ["Apart"]
    assert [group.size for group in graph.groups] == [8]


@pytest.mark.parametrize("case", sorted(MORE.keys() - {"met by another", "returned", "a loss"}))
def test_what_a_module_without_weights_does_in_training_is_kept(case: str, passes: list[str]) -> None:
    assert trace(apart(MORE[case]), torch.randn(2, 3, 8, 8)).recorded.trained is not None
    assert passes[:2] == ["Apart", "Sequential"]


def test_equal_modules_are_looked_at_once(passes: list[str]) -> None:
    class Drop(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, y: Tensor) -> Tensor:
            return F.dropout(y, self.share) if self.training and self.share else y

    layers = [nn.Sequential(nn.Linear(8, 8), Drop(share)) for share in (0.0, 0.1, 0.2, 0.3)]
    assert trace(nn.Sequential(*layers, nn.Linear(8, 2)), torch.randn(2, 8)).recorded.trained is None
    assert passes == ["Drop", "Drop"]


def test_other_code_that_asks_for_the_mode_of_a_module_is_looked_at(passes: list[str]) -> None:
    assert trace(Asking(), torch.randn(2, 3, 8, 8)).recorded.trained is not None
    assert passes == ["Asking"]


def test_networks_that_leave_the_mode_to_their_layers_are_not_recorded_again() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    assert not trace(model, torch.randn(2, 4)).recorded.main.asked
    assert "training" not in vars(nn.Module)


def test_a_trace_draws_no_random_numbers() -> None:
    model = Trained(lambda _, y: y + torch.randn(len(y), 8, 1, 1))
    x, before = torch.randn(2, 3, 8, 8), torch.get_rng_state()
    trace(model, x)
    assert torch.equal(before, torch.get_rng_state())
