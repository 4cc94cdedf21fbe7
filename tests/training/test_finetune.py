"""The loop: it learns, agrees with a loop written out, keeps masks and the user's model, and says what went wrong."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.errors import NotFoundError, TrainingError, UserError
from sned.surgery.masks import hold_masks, masks_of
from sned.training import Recipe
from sned.training.optimisers import cosine, default_kind, rate_factor
from sned.training.randomness import ORDER, generator
from tests.training.networks import accuracy, digit_net, digits, same

pytest.importorskip("accelerate")

QUICK = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05}


def test_it_learns_digits() -> None:
    test = digits(1200, 1500)
    tuned = sned.finetune(
        digit_net(), digits(0, 1200), validation=0.1, epochs=6, batch_size=32, learning_rate=0.1
    )
    assert accuracy(tuned.model, *test) > 0.9
    assert tuned.stopped == "finished"
    assert tuned.chosen is not None
    assert tuned.chosen.metric == max(epoch.metric or 0 for epoch in tuned.history)
    assert [epoch.epoch for epoch in tuned.history] == [1, 2, 3, 4, 5, 6]
    assert "6 of 6 epochs" in tuned.note


def test_it_does_what_a_loop_written_out_does() -> None:
    """SGD with Nesterov's momentum, cosine and warm-up, decay of matrices alone, an average of the weights."""
    x, y = digits(0, 256)
    steps, memory = 3 * 4, 0.5 * 12
    model = digit_net(dropout=0.0).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 1e-3}, {"params": vectors}], 0.05, 0.9, nesterov=True
    )
    average = None
    for step in range(steps):
        epoch, place = divmod(step, 4)
        order = torch.randperm(256, generator=generator(7, ORDER, epoch))[64 * place : 64 * place + 64]
        rising = 3
        factor = (
            (step + 1) / 4
            if step < rising
            else 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        )
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * factor
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[order]), y[order], label_smoothing=0.1).backward()
        optimiser.step()
        weights = [p.detach().clone() for p in model.parameters()]
        kept = 1 - 1 / memory
        average = (
            weights
            if average is None
            else [kept * a + (1 - kept) * w for a, w in zip(average, weights, strict=True)]
        )
    recipe = Recipe(
        epochs=3, batch_size=64, learning_rate=0.05, weight_decay=1e-3, warmup=0.25, ema=0.5, seed=7
    )
    tuned = sned.finetune(digit_net(dropout=0.0), (x, y), recipe=recipe)
    for mine, expected in zip(tuned.model.parameters(), average, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)
    plain = sned.finetune(digit_net(dropout=0.0), (x, y), recipe=recipe, ema=0)
    for mine, expected in zip(plain.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_accumulated_batches_make_the_same_step() -> None:
    x, y = digits(0, 256)
    whole = sned.finetune(_headless(), (x, y), epochs=2, batch_size=64, ema=0, warmup=0, schedule="constant")
    halves = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    wholes = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 256, 64)]
    given = {"epochs": 2, "ema": 0, "warmup": 0, "schedule": "constant", "learning_rate": 0.1}
    one = sned.finetune(_headless(), wholes, **given)
    two = sned.finetune(_headless(), halves, accumulate=2, **given)
    assert two.history[-1].step == one.history[-1].step == 8
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert whole.history[-1].step == 8


def test_accumulated_batches_count_by_the_targets_that_are_not_ignored() -> None:
    """Of two batches one has a seventh of the targets, and a third none at all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 5))
    tokens, targets = torch.randint(0, 50, (48, 7)), torch.randint(0, 5, (48, 7))
    targets[:16, 1:], targets[32:] = -100, -100
    parts = [(tokens[i : i + 16], targets[i : i + 16]) for i in range(0, 48, 16)]
    given = {"task": "tokens", "epochs": 1, "ema": 0, "warmup": 0, "optimiser": "sgd", "learning_rate": 0.1}
    for teacher in (None, copy.deepcopy(model).requires_grad_(False)):
        whole = sned.finetune(model, [(tokens, targets)], teacher=teacher, **given).model
        split = sned.finetune(model, parts, accumulate=3, teacher=teacher, **given).model
        for a, b, old in zip(whole.parameters(), split.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
            assert not torch.equal(a, old)


def _headless() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def test_the_model_its_mode_and_its_frozen_parameters_are_left_alone() -> None:
    model = digit_net().eval()
    model.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    tuned = sned.finetune(model, digits(), **QUICK)
    assert same(model, before)
    assert not tuned.model.training
    assert torch.equal(tuned.model.conv1.weight, before.conv1.weight)
    assert not same(tuned.model, before)


@pytest.mark.parametrize("frozen", ["by its mode", "with its parameters", "not at all"])
def test_statistics_that_were_frozen_stay_and_modes_come_back(frozen: str) -> None:
    model = digit_net()
    if frozen == "by its mode":
        model.bn1.eval()
    else:
        model.eval()
        model.bn1.requires_grad_(frozen == "not at all")
    modes = [module.training for module in model.modules()]
    tuned = sned.finetune(model, digits(), validation=0.1, **QUICK).model
    assert torch.equal(tuned.bn1.running_mean, model.bn1.running_mean) == (frozen != "not at all")
    assert not torch.equal(tuned.bn2.running_mean, model.bn2.running_mean)
    assert [module.training for module in tuned.modules()] == modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_the_caller_takes_no_gradients(mode: type) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(32, 6)
    with mode():
        tuned = sned.finetune(model, (x, x[:, :3].argmax(1)), epochs=1, device="cpu")
    assert not same(tuned.model, model)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_pass_with_gradients_left_on_a_layer_do_not_matter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    labels = x[:, :3].argmax(1)
    model(x).sum().backward()
    before = nn.functional.cross_entropy(model(x), labels).detach()
    tuned = sned.finetune(model, (x, labels), teacher=model, epochs=20, device="cpu", seed=0)
    assert nn.functional.cross_entropy(tuned.model(x), labels).detach() < before


def test_a_pruned_network_keeps_its_plan_and_can_be_saved(tmp_path: Path) -> None:
    x, y = digits()
    dense = sned.finetune(digit_net(), (x, y), epochs=3, learning_rate=0.1).model
    small = sned.apply(dense, sned.plan(sned.trace(dense, x[:2]), sparsity=0.5))
    tuned = sned.finetune(small, (x, y), epochs=3, learning_rate=0.1).model
    assert accuracy(tuned, x, y) > accuracy(small, x, y)
    sned.save(tuned, tmp_path / "tuned.safetensors")
    assert same(sned.load(digit_net(), tmp_path / "tuned.safetensors"), tuned)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_masks_hold_in_the_weights_and_in_their_average(optimiser: str) -> None:
    model = digit_net()
    mask = torch.rand_like(model.conv2.weight) > 0.6
    hold_masks(model, {"conv2.weight": mask})
    tuned = sned.finetune(model, digits(), optimiser=optimiser, **QUICK).model
    assert not bool(tuned.conv2.weight[~mask].any())
    assert not torch.equal(tuned.conv2.weight[mask], model.conv2.weight[mask])
    assert torch.equal(masks_of(tuned)["conv2.weight"], mask)


def test_patience_stops_and_the_best_epoch_is_handed_over() -> None:
    x, y = digits(0, 400)
    validation = digits(400, 600)
    tuned = sned.finetune(
        digit_net(), (x, y), validation=validation, epochs=30, learning_rate=1.0, patience=2, ema=0, batch_size=100,
        schedule="constant",
    )  # fmt: skip
    assert tuned.stopped == "early"
    assert tuned.chosen is not None
    values = [epoch.metric for epoch in tuned.history]
    assert tuned.chosen.metric == max(values)
    assert values.index(tuned.chosen.metric) == len(values) - 3
    assert accuracy(tuned.model, *validation) == pytest.approx(tuned.chosen.metric, abs=1e-9)
    last = sned.finetune(digit_net(), (x, y), validation=validation, keep="last", **QUICK)
    assert last.chosen == last.history[-1]
    assert accuracy(last.model, *validation) == pytest.approx(last.history[-1].metric, abs=1e-9)


def test_a_loss_and_a_metric_and_an_optimiser_of_ones_own() -> None:
    x, y = digits()
    rates: list[float] = []

    def make(groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, 0.01)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.multi_margin_loss(outputs, targets)

    def negative_error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return -float((outputs.argmax(1) != targets).float().mean())

    def halved(done: float) -> float:
        rates.append(done)
        return 0.5

    tuned = sned.finetune(
        digit_net(), (x, y), validation=0.2, optimiser=make, loss=loss, metric=negative_error, schedule=halved,
        warmup=0, epochs=8, batch_size=32,
    )  # fmt: skip
    assert tuned.history[0].learning_rate == 0.005
    assert tuned.metric == "negative_error"
    assert -0.7 < tuned.history[-1].metric <= 0
    assert min(rates) == 0
    assert max(rates) < 1


@pytest.mark.parametrize(
    ("task", "metric"), [("regression", "R²"), ("ranking", "NDCG@10"), ("tokens", "token accuracy")]
)
def test_other_tasks_are_learnt(task: str, metric: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 6, 8)
    secret = torch.randn(8, 3)
    if task == "regression":
        model, data = nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), (x, x.flatten(1) @ torch.randn(48))
    elif task == "ranking":
        model, data = (
            nn.Sequential(nn.Linear(8, 1), nn.Flatten()),
            (x, (x @ secret)[..., 0].clamp(min=0).round()),
        )
    else:
        model, data = nn.Linear(8, 3), (x, (x @ secret).argmax(-1))
    tuned = sned.finetune(
        model,
        data,
        task=task,
        validation=0.2,
        epochs=30,
        learning_rate=0.03,
        batch_size=40,
        optimiser="adamw",
    )
    assert tuned.metric == metric
    assert tuned.chosen.metric > 0.9 > tuned.before


def test_half_precision_is_of_the_forward_pass_alone() -> None:
    seen: list[torch.dtype] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x.flatten(1))
            seen.append(out.dtype)
            return out

    model = Watched(64, 10)
    whole = sned.finetune(model, digits(), precision="no", **QUICK)
    assert set(seen) == {torch.float32}
    seen.clear()
    half = sned.finetune(model, digits(), precision="bf16", validation=digits(0, 99), **QUICK)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert half.model(digits(0, 2)[0]).dtype == torch.float32
    assert half.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_lose_small_steps_are_told(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(dtype), digits()
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float16:  # what Adam divides by is zero there
        with pytest.raises(
            TrainingError, match=r"Try `model.float\(\)`, since its weights are float16; half the learning"
        ):
            sned.finetune(model, (x.to(dtype), y), **QUICK)
    else:
        note = sned.finetune(model, (x.to(dtype), y), **QUICK).note
        assert (f"Its weights are {name}, in which small steps are lost: train `model.float()`" in note) == (
            dtype is torch.bfloat16
        )


def test_a_batch_may_be_a_dict_of_keywords() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(x) * scale}

    batches = [{"x": torch.randn(8, 4), "scale": torch.ones(8, 1), "labels": torch.zeros(8).long()}] * 3
    tuned = sned.finetune(Named(), batches, epochs=2, learning_rate=0.1)
    assert tuned.history[1].loss < tuned.history[0].loss


def test_defaults_fit_the_architecture() -> None:
    transformer = nn.TransformerEncoderLayer(8, 2, 16)
    assert default_kind(digit_net()) == "sgd"
    assert default_kind(transformer) == "adamw"
    assert default_kind(nn.Linear(3, 3)) == "adamw"


def test_the_rate_rises_and_falls() -> None:
    factors = [rate_factor(cosine, step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] < 1e-3


def test_epochs_are_logged_to_csv(tmp_path: Path) -> None:
    tuned = sned.finetune(digit_net(), digits(), validation=0.2, log=tmp_path / "log.csv", **QUICK)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [epoch.loss for epoch in tuned.history]
    assert [float(row["metric"]) for row in rows] == [epoch.metric for epoch in tuned.history]
    assert all(float(row["inputs_per_second"]) > 0 for row in rows)


def test_epochs_are_logged_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tuned = sned.finetune(digit_net(), digits(), validation=0.2, log=tmp_path / "board", **QUICK)
    read = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.step for event in read.Scalars("loss")] == [epoch.step for epoch in tuned.history]
    assert [event.value for event in read.Scalars("metric")] == pytest.approx(
        [e.metric for e in tuned.history]
    )


def test_a_log_that_cannot_be_written_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(NotFoundError, match=r"pip install 'sned\[tensorboard\]'"):
        sned.finetune(digit_net(), digits(), log=tmp_path / "board")
    (tmp_path / "log.txt").touch()
    with pytest.raises(UserError, match=r"`log` must be a file that ends in \.csv, or a folder"):
        sned.finetune(digit_net(), digits(), log=tmp_path / "log.txt")
