"""A twin is what `copy.deepcopy` makes, with other tensors in it."""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sned.errors import ModelError
from sned.graph.trace import state_of
from sned.surgery.twin import twin

twins = importlib.import_module("sned.surgery.twin")


class Settings:
    """An object of the user's."""

    def __init__(self) -> None:
        self.widths = [1, 2]


class Held(nn.Module):
    """Holds what a deep copy has to follow: tables and objects of its own, shared ones, and a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.settings, self.sizes, self.names = Settings(), {"deep": [1, (2, [3])]}, {"a", "b"}
        self.shared = self.one.table = {"n": 1}
        self.empty = self.two.empty = OrderedDict[str, int]()
        self.pair = ([1], 2)
        self.grid = torch.arange(3.0)
        self.parents = [self]
        self.calls = 0
        self.one.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.two(self.one(x))
        return made


class OwnCopy(nn.Linear):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCopy:
        made = OwnCopy(self.in_features, self.out_features)
        made.copied = True
        return made


class Packed(nn.Module):
    """Leaves something out of its state, and makes it again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.cache = object()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.cache = None


def fresh(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() + 1 for name, tensor in state_of(model).items()}


def test_everything_is_copied_once_and_nothing_is_shared_with_the_original() -> None:
    model = Held()
    tensors = fresh(model)
    made = twin(model, tensors)
    assert isinstance(made, Held)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state_of(made).items())
    assert made.settings is not model.settings
    assert made.settings.widths == [1, 2]
    assert made.settings.widths is not model.settings.widths
    assert made.sizes == model.sizes
    assert made.sizes["deep"] is not model.sizes["deep"]
    assert made.sizes["deep"][1][1] is not model.sizes["deep"][1][1]
    assert made.names == model.names
    assert made.names is not model.names
    assert made.pair[0] is not model.pair[0]
    assert torch.equal(made.grid, model.grid)
    assert made.grid is not model.grid
    assert made.shared is made.one.table
    assert made.shared is not model.shared
    assert made.empty is made.two.empty
    assert made.empty is not model.empty
    assert made.parents[0] is made
    assert made.one.padding_mode == "zeros"
    made(torch.zeros(1, 3, 5, 5))
    assert (made.calls, model.calls) == (1, 0), "a hook that is bound to the model is bound to its twin"


def test_every_attribute_is_that_of_a_deep_copy() -> None:
    model = nn.Sequential(
        nn.LSTM(3, 4, bidirectional=True), nn.MultiheadAttention(4, 2), Held(), nn.GroupNorm(2, 4)
    )
    made, plain = twin(model, state_of(model)), copy.deepcopy(model)
    for (path, mine), (_, theirs) in zip(made.named_modules(), plain.named_modules(), strict=True):
        assert list(vars(mine)) == list(vars(theirs)), path
        assert [type(v) for v in vars(mine).values()] == [type(v) for v in vars(theirs).values()], path


def test_tied_and_frozen_parameters_stay_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(requires_grad=False)
    made = twin(model, fresh(model))
    assert made[1].weight is made[0].weight
    assert isinstance(made[0].weight, nn.Parameter)
    assert [made[0].bias.requires_grad, made[1].bias.requires_grad] == [False, True]


def test_classes_that_say_how_they_are_copied_are_asked() -> None:
    model = nn.Sequential(OwnCopy(2, 2), Packed(), weight_norm(nn.Linear(2, 2)))
    made = twin(model, fresh(model))
    assert made[0].copied
    assert made[1].cache is None
    assert made[1].layer.weight is not model[1].layer.weight
    assert type(made[2]) is type(model[2])
    assert made[2](torch.ones(1, 2)).shape == (1, 2)


def test_a_compiled_module_inside_is_copied_with_what_it_wraps() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2), torch.compile(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), backend="eager")
    )
    made = twin(model, {name: torch.zeros_like(tensor) for name, tensor in state_of(model).items()})
    assert type(made[1]) is type(model[1])
    assert not made(torch.ones(1, 2)).any()
    assert model[1](torch.ones(1, 2)).any()


def test_a_recurrent_layer_runs_on_the_tensors_that_it_was_given() -> None:
    model = nn.LSTM(3, 4)
    made = twin(model, {name: torch.zeros_like(tensor) for name, tensor in state_of(model).items()})
    assert not made(torch.ones(2, 1, 3))[0].any()


def test_what_cannot_be_copied_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.stream = (value for value in [1])
    with pytest.raises(ModelError, match=r"copying Sequential failed: cannot pickle 'generator'"):
        twin(model, state_of(model))
    assert next(model.stream) == 1


def test_plain_modules_do_not_take_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    honest = copy.deepcopy
    monkeypatch.setattr(twins.copy, "deepcopy", lambda v, memo: asked.append(type(v)) or honest(v, memo))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.ReLU())
    twin(model, state_of(model))
    assert asked == [nn.Sequential]
