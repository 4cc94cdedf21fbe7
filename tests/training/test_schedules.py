"""Masks that grow, penalties on units, cycles and rewinding: against formulas, autograd, and plain runs."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.errors import PlanError, UserError
from sned.graph.trace import state_of
from sned.surgery.masks import hold_masks, masks_of
from sned.training import (
    GradualMasks,
    GroupLasso,
    GrowingPenalty,
    Part,
    Slimming,
    Trained,
    prune_in_cycles,
    rewound,
)
from sned.training.masking import cubic, largest, thinnable
from sned.training.penalties import owned, unit_norms
from tests.training.networks import accuracy, digit_net, digits, same
from tests.training.test_distillation import Residual

pytest.importorskip("accelerate")

GIVEN = {"epochs": 4, "batch_size": 40, "learning_rate": 0.05}


TRAIN, TEST = digits(0, 1200), digits(1200, 1797)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A network that reads digits."""
    return sned.finetune(digit_net(), TRAIN, epochs=8, batch_size=32, learning_rate=0.1).model.eval()


def sparsities(model: nn.Module) -> dict[str, float]:
    return {name: 1 - float(mask.double().mean()) for name, mask in masks_of(model).items()}


# --- masks -------------------------------------------------------------------------------------------------------------


def test_zeros_grow_by_the_cubic_and_hold() -> None:
    seen: list[tuple[int, float]] = []

    class Watch(Part):
        def after_step(self, trained: Trained, step: int, total: int) -> None:
            held = sparsities(trained.model)
            seen.append((step, held.get("conv2.weight", 0.0)))
            for name, mask in masks_of(trained.model).items():
                weight = trained.model.get_parameter(name)
                assert not bool(weight[~mask].any())
                assert not bool(trained.optimiser.state[weight]["momentum_buffer"][~mask].any())
                assert trained.average is not None
                assert not bool(trained.average.get_parameter(name)[~mask].any())

    masks = GradualMasks(0.75, begin=0.1, end=0.6, updates=5, names=["conv2.weight"])
    tuned = sned.finetune(digit_net(), digits(), parts=[masks, Watch()], **GIVEN)
    total = 60
    for step, held in seen:
        level = min(max(int((step / total - 0.1) / 0.1 + 1e-9), 0), 5)
        assert held == pytest.approx(0.75 * (1 - (1 - level / 5) ** 3), abs=0.002)
    assert sparsities(tuned.model) == {"conv2.weight": pytest.approx(0.75, abs=1e-3)}
    assert int((tuned.model.conv2.weight == 0).sum()) == round(0.75 * 12 * 24 * 9)


def test_the_largest_stay() -> None:
    weight = torch.randn(6, 8, 3, 3)
    mask = largest(weight, 0.25, GradualMasks(0.5).pattern)
    assert float(weight[mask].abs().min()) >= float(weight[~mask].abs().max())
    assert int(mask.sum()) == 108


def test_a_pattern_is_kept_to() -> None:
    tuned = sned.finetune(
        digit_net(), digits(), parts=[GradualMasks(pattern="2:4", names=["conv2.weight"])], **GIVEN
    )
    mask = masks_of(tuned.model)["conv2.weight"]
    assert set(mask.reshape(24, 3, 4, 9).sum(2).unique().tolist()) == {2}


def test_gradual_beats_one_shot_at_many_zeros(dense: nn.Module) -> None:
    names = ["conv2.weight", "head.weight"]
    given = {"epochs": 6, "batch_size": 32, "learning_rate": 0.03, "ema": 0}
    gradual = sned.finetune(dense, TRAIN, parts=[GradualMasks(0.9, names=names)], **given).model
    once = copy.deepcopy(dense)
    hold_masks(
        once, {n: largest(once.get_parameter(n).detach(), 0.1, GradualMasks(0.9).pattern) for n in names}
    )
    assert accuracy(once, *TEST) < 0.6
    assert accuracy(gradual, *TEST) > max(accuracy(once, *TEST) + 0.2, 0.8)
    assert set(sparsities(gradual)) == set(names)


def test_the_best_epoch_is_one_with_all_zeros() -> None:
    tuned = sned.finetune(
        digit_net(),
        digits(),
        validation=0.2,
        parts=[GradualMasks(0.95, begin=0.5, end=0.9)],
        **(GIVEN | {"epochs": 6}),
    )
    assert tuned.chosen is not None
    assert tuned.chosen.epoch == 6
    assert all(share > 0.9 for share in sparsities(tuned.model).values())


def test_growing_masks_are_resumed_exactly(tmp_path: Path) -> None:
    class Stop(Part):
        def after_step(self, trained: Trained, step: int, total: int) -> None:
            if step == 23:
                os.kill(os.getpid(), signal.SIGINT)

    def masks() -> GradualMasks:
        return GradualMasks(0.8, updates=7)

    whole = sned.finetune(digit_net(), digits(), parts=[masks()], **GIVEN)
    sned.finetune(digit_net(), digits(), parts=[masks(), Stop()], folder=tmp_path, **GIVEN)
    rest = sned.finetune(digit_net(), digits(), parts=[masks()], folder=tmp_path, **GIVEN)
    assert same(rest.model, whole.model)
    assert sparsities(rest.model) == sparsities(whole.model)


class Attending(nn.Module):
    """Attention never calls its `out_proj`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1).unflatten(1, (-1, 8))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_zeros_of_modules_that_are_never_called_hold_at_every_step() -> None:
    name, mask = "attention.out_proj.weight", torch.eye(8).bool()
    model = Attending()
    hold_masks(model, {name: mask})
    moved: list[bool] = []

    class Watch(Part):
        def after_step(self, trained: Trained, step: int, total: int) -> None:
            assert trained.average is not None
            average = trained.average.get_parameter(name)
            moved.extend(bool(weight[~mask].any()) for weight in (trained.model.get_parameter(name), average))

    tuned = sned.finetune(model, digits(), parts=[Watch()], **(GIVEN | {"epochs": 1, "ema": 0.2}))
    assert not any(moved)
    assert len(moved) == 2 * 15
    assert not bool(tuned.model.get_parameter(name)[~mask].any())


def test_masks_that_a_network_cannot_hold_are_told_before_it_is_trained() -> None:
    model, x = digit_net(), digits()
    with pytest.raises(PlanError, match=r"'conv2\.wait' is no weight of .* Did you mean 'conv2\.weight'"):
        sned.finetune(model, x, parts=[GradualMasks(0.5, names=["conv2.wait"], begin=0.9, end=1.0)], **GIVEN)
    nn.utils.parametrizations.weight_norm(model.conv2)
    with pytest.raises(
        PlanError, match=r"'conv2\.weight' is computed from others, .* give `names` without it"
    ):
        sned.finetune(model, x, parts=[GradualMasks(0.5, begin=0.9, end=1.0)], **GIVEN)
    names = ["head.weight"]
    tuned = sned.finetune(model, x, parts=[GradualMasks(0.5, names=names)], **(GIVEN | {"epochs": 1}))
    assert sparsities(tuned.model) == {"head.weight": pytest.approx(0.5, abs=0.01)}


class Reading(nn.Module):
    """A language model in small: the weight of its head is that of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids)).mean(1)


def test_masks_grow_in_tied_weights() -> None:
    ids = torch.randint(11, (32, 5), generator=torch.Generator().manual_seed(0))
    masks = GradualMasks(0.5, names=["head.weight"])
    tuned = sned.finetune(Reading(), (ids, ids[:, 0]), parts=[masks], **GIVEN).model
    held = masks_of(tuned)
    assert held.keys() == {"embed.weight"}
    assert int((~held["embed.weight"]).sum()) == int((tuned.head.weight == 0).sum()) == 88


def test_masks_that_cannot_be_are_told() -> None:
    with pytest.raises(PlanError, match=r"must be in \(0, 1\), got 1.5"):
        GradualMasks(1.5)
    with pytest.raises(PlanError, match="2:4 makes 50% zeros, but 70% was asked"):
        GradualMasks(0.7, pattern="2:4")
    with pytest.raises(PlanError, match="0 <= begin < end <= 1"):
        GradualMasks(0.5, begin=0.8, end=0.3)
    with pytest.raises(PlanError, match=r"'conv3.weight' is no weight .* Did you mean 'conv"):
        GradualMasks(0.5, names=["conv3.weight"]).masks(digit_net(), 0.5)
    assert set(thinnable(digit_net())) == {"conv2.weight", "head.weight"}
    frozen = digit_net()
    frozen.conv2.requires_grad_(False)
    assert set(thinnable(frozen)) == {"head.weight"}


# --- penalties ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def residual() -> tuple[nn.Module, sned.Graph]:
    torch.manual_seed(0)
    model = Residual()
    return model, sned.trace(model, torch.randn(2, 3, 8, 8))


def written_out(model: nn.Module, graph: sned.Graph, group: sned.Group, unit: int) -> torch.Tensor:
    """The squared norm of a unit, slice by slice."""
    parts = []
    for part in group.slices:
        weight = model.get_parameter(part.parameter) if part.parameter in graph.trainable else None
        if weight is not None and weight.ndim > 1:
            index = torch.from_numpy(part.positions[unit])
            parts.append(weight.index_select(part.axis, index).square().sum())
    return torch.stack(parts).sum()


def test_group_lasso_is_its_formulas_gradient(residual: tuple[nn.Module, sned.Graph]) -> None:
    model, graph = residual
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    GroupLasso(graph, 0.3).after_backward(model, step=50, total=100)
    mine = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    penalty = torch.zeros(())
    for group in graph.groups:
        numbers = sum(
            model.get_parameter(s.parameter)[0].numel() * s.positions.shape[1]
            if s.axis == 0
            else model.get_parameter(s.parameter)[:, 0].numel() * s.positions.shape[1]
            for s in group.slices
            if s.parameter in graph.trainable and model.get_parameter(s.parameter).ndim > 1
        )
        for unit in range(group.size):
            penalty = penalty + 0.3 * numbers**0.5 * written_out(model, graph, group, unit).sqrt()
    penalty.backward()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, atol=1e-5, rtol=1e-4)
        else:
            assert not bool(mine[name].any())


def test_norms_are_those_of_all_that_goes_with_a_unit(residual: tuple[nn.Module, sned.Graph]) -> None:
    model, graph = residual
    for group in graph.groups:
        norms = unit_norms(model, owned(graph, group), group.size)
        expected = [written_out(model, graph, group, unit).sqrt().item() for unit in range(group.size)]
        assert norms.tolist() == pytest.approx(expected, rel=1e-5)


def test_group_lasso_makes_units_small_that_can_then_go(dense: nn.Module) -> None:
    graph = sned.trace(dense, TRAIN[0][:2])
    given = {"epochs": 5, "batch_size": 32, "learning_rate": 0.05}
    plain = sned.finetune(dense, TRAIN, **given).model
    sparse = sned.finetune(dense, TRAIN, parts=[GroupLasso(graph, 3e-3)], **given).model
    after = {}
    for name, model in (("plain", plain), ("sparse", sparse)):
        model.eval()
        small = sned.apply(model, sned.plan(sned.trace(model, TRAIN[0][:2]), sparsity=0.25, saliency="l2"))
        after[name] = accuracy(model, *TEST) - accuracy(small, *TEST)
    assert after["sparse"] < after["plain"]


def test_a_growing_penalty_empties_the_units_of_its_plan(dense: nn.Module) -> None:
    graph = sned.trace(dense, TRAIN[0][:2])
    plan = sned.plan(graph, sparsity=0.4)
    emptied = sned.finetune(
        dense, TRAIN, parts=[GrowingPenalty(graph, plan, 5.0)], epochs=8, batch_size=32, learning_rate=0.05
    )
    for group in graph.groups:
        gone = list(plan.removed[group.name])
        stay = [unit for unit in range(group.size) if unit not in gone]
        norms = unit_norms(emptied.model, owned(graph, group), group.size)
        assert float(norms[gone].max()) < 0.2 * float(norms[stay].min())
    lost = accuracy(dense, *TEST) - accuracy(sned.apply(dense, plan), *TEST)
    assert accuracy(emptied.model, *TEST) - accuracy(sned.apply(emptied.model, plan), *TEST) < 0.3 * lost
    with pytest.raises(PlanError, match="removes none"):
        GrowingPenalty(graph, graph.plan({}))


def test_slimming_shrinks_scales() -> None:
    model, data = digit_net(), digits()
    graph = sned.trace(model, data[0][:2])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Slimming(graph, 0.5).after_backward(model, 0, 10)
    assert torch.equal(model.bn1.weight.grad, 0.5 * model.bn1.weight.sign())
    assert not bool(model.conv1.weight.grad.any())
    plain = sned.finetune(digit_net(), data, **GIVEN).model
    slim = sned.finetune(digit_net(), data, parts=[Slimming(graph, 0.05)], **GIVEN).model
    assert slim.bn2.weight.abs().sum().item() < 0.9 * plain.bn2.weight.abs().sum().item()
    bare = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 10))
    with pytest.raises(PlanError, match="this network has none"):
        Slimming(sned.trace(bare, torch.randn(2, 64)))
    with pytest.raises(PlanError, match="strength must be a finite number"):
        GroupLasso(graph, -1.0)


# --- cycles and rewinding ----------------------------------------------------------------------------------------------


def test_cycles_remove_ever_less_and_end_where_asked(dense: nn.Module, tmp_path: Path) -> None:
    train = digits()
    given = {
        "remaining": 0.5,
        "cycles": 3,
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.05,
    }
    made = prune_in_cycles(dense, train[0][:2], train, folder=tmp_path, **given)
    assert made.remaining == pytest.approx([1 - 0.5 * (1 - (1 - (i + 1) / 3) ** 3) for i in range(3)])
    widths = [tuned.model.conv2.out_channels for tuned in made.tuned]
    assert widths == [16, 13, 12]
    assert dense.conv2.out_channels == 24
    assert {"labels", "logits"} == set(made.tuned[2].history[0].terms)
    sned.save(made.model, tmp_path / "small.safetensors")
    assert same(sned.load(digit_net(), tmp_path / "small.safetensors"), made.model)
    again = prune_in_cycles(dense, train[0][:2], train, folder=tmp_path, **given)
    assert same(again.model, made.model)
    for wrong in ({"remaining": 1.0}, {"cycles": 0}):
        with pytest.raises(UserError, match=f"`{next(iter(wrong))}` must be"):
            prune_in_cycles(dense, train[0][:2], train, **(given | wrong))


def test_cycles_go_to_a_budget() -> None:
    x = TRAIN[0][:1]
    dense = digit_net()
    made = prune_in_cycles(
        dense, x, digits(0, 200), budget=sned.Budget(macs="40%"), cycles=3, epochs=1, teacher=None
    )
    whole, *rest = (macs_by_hand(model) for model in (dense, *(tuned.model for tuned in made.tuned)))
    for found, share in zip(rest, made.remaining, strict=True):
        assert 0.85 * share * whole < found <= share * whole
    assert made.remaining[-1] == pytest.approx(0.4)
    assert set(made.tuned[0].history[0].terms) == {"labels"}
    for wrong, match in (
        ({}, "Give either `remaining`"),
        ({"remaining": 0.5, "budget": sned.Budget(macs="40%")}, "Give either `remaining`"),
        ({"budget": sned.Budget(sparsity=0.5)}, "for a sparsity use `remaining`"),
        ({"budget": sned.Budget(macs=1e12)}, "A budget must be less than what there is"),
        (
            {"budget": sned.Budget(macs="40%"), "choose": lambda graph, share: graph.plan({})},
            "not a `budget`",
        ),
    ):
        with pytest.raises(UserError, match=match):
            prune_in_cycles(dense, x, digits(0, 200), **wrong)


def macs_by_hand(model: nn.Module) -> int:
    """Of one digit of 8 x 8; the second convolution has a stride of two."""
    kernels = 64 * model.conv1.weight.numel() + 16 * model.conv2.weight.numel()
    return kernels + model.head.weight.numel()


def test_features_are_matched_through_all_cycles() -> None:
    train = digits(0, 200)
    dense = digit_net()
    made = prune_in_cycles(
        dense,
        TRAIN[0][:2],
        train,
        remaining=0.5,
        cycles=2,
        epochs=1,
        distillation={"features": 1.0},
    )
    assert "features" in made.tuned[1].history[0].terms


def test_penalties_are_of_the_network_of_each_cycle() -> None:
    x, dense = TRAIN[0][:2], digit_net()
    given = {
        "remaining": 0.5,
        "cycles": 2,
        "epochs": 1,
        "batch_size": 64,
        "learning_rate": 0.02,
        "teacher": None,
    }
    plain = prune_in_cycles(dense, x, digits(0, 200), **given)
    pulled = prune_in_cycles(dense, x, digits(0, 200), parts=lambda graph: [GroupLasso(graph, 0.05)], **given)
    small = [made.model.conv2.weight.norm().item() for made in (plain, pulled)]
    assert small[1] < 0.9 * small[0]
    with pytest.raises(
        PlanError, match=r"'conv1.weight' is \[12, 1, 3, 3\] in the graph and \[\d+, 1, 3, 3\] in the net"
    ):
        prune_in_cycles(dense, x, digits(0, 200), parts=[GroupLasso(sned.trace(dense, x))], **given)


def test_the_cubic() -> None:
    assert [cubic(done) for done in (-1, 0, 0.5, 1, 2)] == [0, 0, 0.875, 1, 1]


def test_rewinding_gives_early_weights_to_what_stayed() -> None:
    early, late, x = digit_net(1), digit_net(2), digits()[0][:2]
    plan = sned.plan(sned.trace(late, x), sparsity=0.5)
    small = sned.apply(late, plan)
    mask = torch.rand_like(small.conv2.weight) > 0.5
    hold_masks(small, {"conv2.weight": mask})
    back = rewound(small, early)
    state, old = state_of(back), state_of(early)
    for name, axes in plan.kept.items():
        expected = old[name]
        for axis, kept in axes.items():
            expected = expected.index_select(axis, torch.from_numpy(kept))
        assert torch.equal(state[name], expected * mask if name == "conv2.weight" else expected)
    assert masks_of(early) == {}
    assert set(masks_of(back)) == {"conv2.weight"}
    with pytest.raises(PlanError, match="carries no plan and no masks"):
        rewound(late, early)
