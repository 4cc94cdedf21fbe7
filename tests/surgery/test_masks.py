"""Zeros hold through training, copies, files and surgery, and are let go by one call."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned import Plan, apply, trace
from sned.errors import PlanError, SurgeryError
from sned.surgery import burn_in, masks_of
from sned.surgery.masks import hold_masks
from tests.graph.networks import Residual, Tied, tokens
from tests.graph.oracle import call, distance, lively, random_units

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAMES = ("a1.weight", "a2.weight", "fc.weight")


def masked() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network with half of three weights masked."""
    model = lively(Residual())
    generator = torch.Generator().manual_seed(1)
    state = dict(model.named_parameters())
    masks = {name: torch.rand(state[name].shape, generator=generator) < 0.5 for name in NAMES}
    hold_masks(model, masks)
    return model, masks


def zeros_hold(model: nn.Module, masks: dict[str, torch.Tensor]) -> bool:
    state = dict(model.named_parameters())
    return all(not bool(state[name][~mask].any()) for name, mask in masks.items())


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int = 3) -> None:
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        (model(IMAGE) - 1).square().mean().backward()
        optimiser.step()


OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 0.01, weight_decay=0.1),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_no_optimiser_moves_a_zero(name: str) -> None:
    model, masks = masked()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, OPTIMISERS[name](model))
    assert zeros_hold(model, masks)
    moved = dict(model.named_parameters())
    assert all(not torch.equal(before[n][mask], moved[n][mask]) for n, mask in masks.items())


def test_copies_hold_their_own_zeros() -> None:
    model, masks = masked()
    twin = copy.deepcopy(model)
    train(twin, OPTIMISERS["adamw"](twin))
    assert zeros_hold(twin, masks)
    again = reloaded(model)
    train(again, OPTIMISERS["sgd"](again))
    assert zeros_hold(again, masks)


class Attending(nn.Module):
    """Attention calls `out_proj` as a function, not as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def reloaded(model: nn.Module) -> nn.Module:
    """A copy by way of pickle."""
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def cut_by_half(model: nn.Module) -> nn.Module:
    graph = trace(model, IMAGE)
    return apply(model, graph.plan(random_units(graph, 0.5)))


@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded, cut_by_half])
def test_copies_hold_zeros_of_modules_that_are_never_called(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = lively(Attending())
    name = "attention.out_proj.weight"
    hold_masks(model, {name: torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.5})
    twin = copied(copied(model))
    held = masks_of(twin)
    assert not bool(held[name].all())
    train(twin, OPTIMISERS["adamw"](twin))
    assert zeros_hold(twin, held)


def test_a_mask_on_the_second_name_of_a_tied_weight_goes_by_the_first() -> None:
    model, ids = lively(Tied()), tokens()
    first, second = torch.rand(2, *model.head.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    hold_masks(model, {"head.weight": first, "embed.weight": second})
    assert masks_of(model).keys() == {"embed.weight"}
    assert torch.equal(masks_of(model)["embed.weight"], first & second)
    graph = trace(model, ids)
    plan = graph.plan(random_units(graph, 0.5))
    small = apply(model, plan)
    held = masks_of(small)
    kept = torch.from_numpy(plan.kept["embed.weight"][1])
    assert torch.equal(held["embed.weight"], (first & second)[:, kept])
    optimiser = torch.optim.AdamW(small.parameters(), 0.01)
    small(ids).square().mean().backward()
    optimiser.step()
    assert not bool(small.head.weight[~held["embed.weight"]].any())


def test_masks_of_weights_that_are_tied_later_are_one() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    left, right = torch.eye(3).bool(), torch.ones(3, 3).triu().bool()
    hold_masks(model, {"a.weight": right, "b.weight": left})
    model["b"].weight = model["a"].weight
    assert torch.equal(masks_of(model)["a.weight"], left & right)


@pytest.mark.parametrize("trainable", [True, False])
def test_masks_below_a_weight_norm_are_cut_with_it(trainable: bool) -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = lively(nn.Sequential(norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)))
    name, x = "0.parametrizations.weight.original1", torch.randn(4, 6)
    mask = torch.rand(16, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True  # a row of zeros alone has no norm
    hold_masks(model, {name: mask})
    model.requires_grad_(trainable)
    graph = trace(model, x)
    small = apply(model, graph.plan({graph.groups[0].name: [0, 3]}))
    gone = torch.isin(torch.arange(16), torch.tensor([0, 3]))
    assert torch.equal(masks_of(small)[name], mask[~gone])
    assert torch.equal(small[0].weight == 0, ~mask[~gone])


def test_names_stay_and_what_is_loaded_gets_the_zeros() -> None:
    model, masks = masked()
    dense = lively(Residual(), seed=3)
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert type(model) is Residual
    model.load_state_dict(dense.state_dict())
    assert zeros_hold(model, masks)
    state, whole = dict(model.named_parameters()), dict(dense.named_parameters())
    assert all(torch.equal(state[n][mask], whole[n][mask]) for n, mask in masks.items())


def test_an_exchanged_parameter_is_taken_hold_of() -> None:
    model, masks = masked()
    model.fc.weight = nn.Parameter(torch.ones_like(model.fc.weight))
    train(model, OPTIMISERS["sgd"](model))
    assert zeros_hold(model, masks)


def test_a_parameter_that_comes_after_another_is_taken_hold_of() -> None:
    """It may be given the identity of the one that is gone."""
    model, masks = masked()
    for _ in range(5):
        value = torch.ones_like(model.fc.weight)
        del model.fc.weight
        model.fc.weight = nn.Parameter(value)
        train(model, OPTIMISERS["sgd"](model), steps=1)
        assert zeros_hold(model, masks)


def test_what_is_assigned_stays_as_the_caller_has_it() -> None:
    model, masks = masked()
    given = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(given, assign=True)
    assert zeros_hold(model, masks)
    assert all(bool((value == 1).all()) for value in given.values())
    train(model, OPTIMISERS["sgd"](model))
    assert zeros_hold(model, masks)


def test_burning_in_lets_go() -> None:
    model, masks = masked()
    before = call(model, IMAGE)
    assert burn_in(model) is model
    assert masks_of(model) == {}
    assert zeros_hold(model, masks)
    assert torch.equal(call(model, IMAGE), before)
    train(model, OPTIMISERS["sgd"](model), steps=1)
    assert not zeros_hold(model, masks)
    assert not model.fc._forward_pre_hooks


def test_a_plan_with_masks_goes_through_json_and_files(tmp_path: Path) -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE)
    _, masks = masked()
    plan = replace(graph.plan({}), masks={name: mask.numpy() for name, mask in masks.items()})
    plan = Plan.from_json(plan.to_json())
    assert "3 tensors hold zeros" in str(plan)
    small = apply(model, plan)
    assert zeros_hold(small, masks)
    train(small, OPTIMISERS["adamw"](small))
    small.eval()
    sned.save(small, tmp_path / "masked.safetensors")
    again = sned.load(Residual(), tmp_path / "masked.safetensors").eval()
    assert torch.equal(call(again, IMAGE), call(small, IMAGE))
    train(again, OPTIMISERS["sgd"](again))
    assert zeros_hold(again, masks)


def test_units_of_a_masked_network_go_with_their_part_of_the_mask() -> None:
    model, masks = masked()
    graph = trace(model, IMAGE)
    assert len(graph.groups) == len(trace(lively(Residual()), IMAGE).groups)
    plan = graph.plan(random_units(graph, 0.5))
    small = apply(model, plan)
    held = masks_of(small)
    for name, mask in masks.items():
        for axis, kept in plan.kept.get(name, {}).items():
            mask = mask.index_select(axis, torch.from_numpy(kept))
        assert torch.equal(held[name], mask)
    train(small, OPTIMISERS["adam"](small))
    assert zeros_hold(small, held)


def test_masks_are_united() -> None:
    model, masks = masked()
    more = ~masks["fc.weight"] | (torch.arange(masks["fc.weight"].shape[1]) % 2 == 0)
    hold_masks(model, {"fc.weight": more})
    assert torch.equal(masks_of(model)["fc.weight"], masks["fc.weight"] & more)


def test_masks_that_do_not_fit_are_refused() -> None:
    model = lively(Residual())
    with pytest.raises(SurgeryError, match=r"'fc\.wait' must have shape \(2,\), got no such parameter"):
        hold_masks(model, {"fc.wait": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(SurgeryError, match=r"'fc\.weight' must have shape \(2,\), got \(5, "):
        hold_masks(model, {"fc.weight": torch.ones(2, dtype=torch.bool)})
    assert masks_of(model) == {}
    graph = trace(model, IMAGE)
    plan = replace(graph.plan({}), masks={"fc.weight": torch.ones(2, dtype=torch.bool).numpy()})
    with pytest.raises(PlanError, match=r"'fc\.weight' has shape .* its mask \(2,\)"):
        apply(model, plan)


@pytest.mark.parametrize("bits", ["", "AAAA", "not base64!"])
def test_an_altered_mask_in_json_is_refused(bits: str) -> None:
    graph = trace(lively(Residual()), IMAGE)
    plan = replace(graph.plan({}), masks={"fc.weight": torch.ones(5, 12).bool().numpy()})
    text = plan.to_json()
    start = text.index('"bits": "') + len('"bits": "')
    with pytest.raises(PlanError, match="reading it failed"):
        Plan.from_json(text[:start] + bits + text[text.index('"', start) :])


def test_a_masked_network_is_exported_with_its_zeros(tmp_path: Path) -> None:
    model, masks = masked()
    exported = torch.export.export(burn_in(copy.deepcopy(model)).eval(), (IMAGE,)).module()
    assert distance(exported(IMAGE), call(model.eval(), IMAGE)) < 1e-5
    assert zeros_hold(model, masks)
