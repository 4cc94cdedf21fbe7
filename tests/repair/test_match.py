"""Matching brings a pruned network closer to the dense one on inputs that it never saw, and keeps the best step."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

import sned
from sned.errors import CalibrationError, ModelError
from sned.repair.drawn import _if_images, _is_images, _varied
from sned.repair.match import _apart, _entering, _inputs_kept, match
from sned.surgery import masks_of
from sned.surgery.masks import hold_masks
from tests.repair.networks import Routed, block, images


def distance(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).square().mean() / b(x).var())


def pruned() -> tuple[nn.Module, nn.Module]:
    dense = block()
    return sned.apply(dense, sned.plan(sned.trace(dense, images(2)), sparsity=0.4)), dense


def test_answers_on_fresh_inputs_come_closer() -> None:
    small, dense = pruned()
    found = match(small, dense, images(160).split(40), steps=60, rate=1e-2)
    assert distance(found.model, dense, images(64, seed=9)) < 0.5 * distance(small, dense, images(64, seed=9))
    assert found.best > 0
    assert dict(found.divergences)[found.best] == min(value for _, value in found.divergences)
    assert "label-free steps" in found.note


def test_answers_come_closer_where_values_pick_the_rows_of_layers() -> None:
    torch.manual_seed(0)
    dense, x = Routed().eval(), torch.randn(160, 6)
    small = sned.apply(dense, sned.trace(dense, x[:2]).plan({"stem": list(range(0, 16, 2))}))
    found = match(small, dense, x.split(40), steps=60, rate=1e-2)
    assert distance(found.model, dense, x) < distance(small, dense, x)


def test_both_networks_are_left_alone() -> None:
    small, dense = pruned()
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (small, dense)]
    match(small, dense, [images(64)], steps=4)
    for model, state in zip((small, dense), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_step_that_does_harm_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("sned.repair.match"), "TOO_FAR", float("inf"))
    small, dense = pruned()
    found = match(small, dense, [images(64)], steps=8, rate=50.0)
    assert found.best == 0
    with torch.no_grad():
        assert torch.equal(found.model(images(4)), small(images(4)))


@pytest.mark.parametrize("falls", [True, False])
def test_a_step_size_that_leads_astray_falls(falls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sned.repair.match")
    if not falls:
        monkeypatch.setattr(module, "TOO_FAR", float("inf"))
    small, dense = pruned()
    found = match(small, dense, images(160).split(40), steps=100, rate=3.0)
    nearer = distance(found.model, dense, images(64, seed=9)) < distance(small, dense, images(64, seed=9))
    assert nearer is falls


def test_not_more_inputs_judge_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sned.repair.match")
    monkeypatch.setattr(module, "JUDGED", 24)
    judged: list[int] = []
    whole = module._Judge.__init__

    def noted(self: object, graph: object, teacher: object, batches: list[tuple[torch.Tensor]]) -> None:
        judged.append(sum(len(x) for (x,) in batches))
        whole(self, graph, teacher, batches)

    monkeypatch.setattr(module._Judge, "__init__", noted)
    small, dense = pruned()
    match(small, dense, [images(160)], steps=2)
    assert judged == [24]


def test_masks_hold() -> None:
    dense = block()
    small = copy.deepcopy(dense)
    mask = torch.rand(small.conv1.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    hold_masks(small, {"conv1.weight": mask})
    found = match(small, dense, [images(64)], steps=6, rate=1e-2)
    assert not bool(found.model.conv1.weight[~mask].any())
    assert torch.equal(masks_of(found.model)["conv1.weight"], mask)


def test_time_ends_it_too() -> None:
    small, dense = pruned()
    found = match(small, dense, [images(64)], steps=10_000, seconds=0.5)
    assert 0 < found.steps < 10_000
    assert found.seconds < 10


def test_interrupting_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sned.repair.match")
    whole, calls = module._losses, []

    def losses(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(module, "_losses", losses)
    small, dense = pruned()
    found = match(small, dense, images(160).split(40), steps=80, rate=1e-2)
    assert found.steps == 20
    assert found.best in (10, 20)


def test_too_few_inputs_are_refused() -> None:
    small, dense = pruned()
    with pytest.raises(CalibrationError, match="at least 32 inputs, got 8"):
        match(small, dense, [images(8)])


def test_what_enters_a_layer_is_compared_on_the_channels_that_are_left() -> None:
    small, dense = pruned()
    smaller = sned.apply(small, sned.plan(sned.trace(small, images(2)), sparsity=0.5))
    for model in (small, smaller):
        kept = _inputs_kept(model, dense)
        assert "conv2" in kept
        with torch.no_grad(), _entering(dense, kept) as wanted:
            dense(images(4))
        with torch.no_grad(), _entering(model, dict.fromkeys(kept)) as features:
            model(images(4))
        mine, theirs = ([each for (each,) in seen.values()] for seen in (features, wanted))
        assert [f.shape for f in mine] == [w.shape for w in theirs]
        assert torch.equal(mine[0], theirs[0]), "nothing is cut before the first layer"
        assert torch.allclose(mine[1], theirs[1]), "the first layer's channels are those of the dense one"


def test_images_are_shifted_and_mirrored() -> None:
    whole = torch.zeros(2000, 1, 16, 16)
    whole[:, :, 8, 4] = 1.0
    found = _varied(whole, torch.Generator().manual_seed(0))
    assert found.shape == whole.shape
    places = {tuple(image[0].nonzero()[0].tolist()) for image in found}
    assert places == {(y, x) for y in range(6, 11) for x in (2, 3, 4, 5, 6, 9, 10, 11, 12, 13)}


@pytest.mark.parametrize(
    ("value", "are"),
    [(torch.zeros(2, 3, 16, 16), True), (torch.zeros(2, 3, 8, 16), False), (torch.zeros(2, 3, 16), False)],
)
def test_what_counts_as_images(value: torch.Tensor, are: bool) -> None:
    assert _is_images(value) is are
    assert not _is_images(value.long())


def test_images_may_have_their_channels_last() -> None:
    first = torch.randn(3, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    varied = _if_images(first.permute(0, 2, 3, 1), torch.Generator().manual_seed(1))
    expected = _varied(first, torch.Generator().manual_seed(1))
    assert torch.equal(varied, expected.permute(0, 2, 3, 1))
    small = torch.randn(3, 8, 8, 3)
    assert _if_images(small, torch.Generator()) is small


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_pass_with_gradients_left_on_a_layer_do_not_matter() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    small = sned.apply(dense, sned.plan(sned.trace(dense, x), sparsity=0.5))
    for model in (dense, small):
        model(x).sum().backward()
    found = match(small, dense, [x], steps=60, rate=1e-2)
    assert found.best > 0
    assert distance(found.model, dense, x) < distance(small, dense, x)


class Fixed(nn.Module):
    """Runs at one batch size, on inputs and a table that has no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.head(self.wide(x + table.mean(0)).relu())
        return y.reshape(4, 3), y.square().mean()


def test_tensors_without_a_batch_axis_stay_whole_and_one_batch_size_is_kept() -> None:
    torch.manual_seed(0)
    dense, table = Fixed().eval(), torch.randn(5, 6)
    batches = [(x, table) for x in torch.randn(64, 6).split(4)]
    small = sned.apply(dense, sned.plan(sned.trace(dense, batches[0]), sparsity=0.5))
    found = match(small, dense, batches, steps=40, rate=1e-2)
    assert found.best > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_learns_too_and_comes_back_as_it_was(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval().to(dtype)
    x = torch.randn(64, 6).to(dtype)
    small = sned.apply(dense, sned.plan(sned.trace(dense, x[:2]), sparsity=0.5))
    found = match(small, dense, [x], steps=60, rate=1e-2)
    assert {p.dtype for p in found.model.parameters()} == {dtype}
    with torch.no_grad():
        before, after = ((m(x).float() - dense(x).float()).square().mean() for m in (small, found.model))
    assert after < 0.7 * before


def test_modes_come_back_as_they_were_and_no_gradient_is_left() -> None:
    small, dense = pruned()
    small.train()
    small.bn1.eval()
    found = match(small, dense, [images(64)], steps=4)
    modes = [[module.training for module in model.modules()] for model in (found.model, small)]
    assert modes[0] == modes[1]
    assert all(parameter.grad is None for parameter in found.model.parameters())


def test_frozen_weights_and_answers_that_are_no_numbers_are_refused() -> None:
    small, dense = pruned()
    with pytest.raises(ModelError, match=r"every parameter of the model is frozen. Unfreeze some"):
        match(small.requires_grad_(False), dense, [images(64)])

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).argmax(1)

    with pytest.raises(ModelError, match=r"it returns none. Return its scores"):
        match(Chosen().eval(), Chosen().eval(), [images(64)])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_the_caller_takes_none(mode: type) -> None:
    with mode():
        small, dense = pruned()
        found = match(small, dense, [images(64)], steps=20, rate=1e-2)
    assert found.best > 0


class Twice(nn.Module):
    """Calls a layer within a block that can be left out, and again behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.whole = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = x + self.shared(x) if self.whole else x
        return self.head(x + self.shared(x.relu()))


def test_a_layer_that_is_called_less_often_is_not_compared() -> None:
    torch.manual_seed(0)
    dense = Twice().eval()
    small = copy.deepcopy(dense)
    small.whole = False
    x = torch.randn(64, 6)
    found = match(small, dense, [x], steps=40, rate=1e-2)
    assert distance(found.model, dense, x) < distance(small, dense, x)


def test_groups_that_fall_to_one_are_not_compared() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    dense.eval().append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    graph = sned.trace(dense, images(2))
    small = sned.apply(dense, graph.plan({graph.groups[0].name: list(range(7))}))
    assert small[2].groups == 1
    assert set(_inputs_kept(small, dense)) == {"0", "3"}


def test_answers_that_are_masked_are_left_aside() -> None:
    given, wanted = torch.randn(2, 20, 5).unbind()
    masked = torch.full((20, 2), -torch.inf)
    found = _apart(torch.cat([given.requires_grad_(), masked], 1), torch.cat([wanted, masked], 1))
    torch.testing.assert_close(found, (given - wanted).square().mean() / wanted.var())
    found.backward()
    torch.testing.assert_close(given.grad, 2 * (given - wanted).detach() / 100 / wanted.var())
