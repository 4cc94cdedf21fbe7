"""The loop: it learns, agrees with a loop written out, keeps masks and the user's model, and says what went wrong."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.errors import CheckpointError, NotFoundError, TrainingError, UserError
from sned.surgery.masks import hold_masks, masks_of
from sned.training import GradualMasks, Part, Recipe, Trained
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


# --- stopping, and what goes wrong -----------------------------------------------------------------------------------


class At(Part):
    """Does something after the step of a given number."""

    def __init__(self, when: int, act: object) -> None:
        self.when, self.act = when, act

    def after_step(self, trained: Trained, step: int, total: int) -> None:
        if step == self.when:
            self.act(trained)  # type: ignore[operator]


def _ctrl_c(_: Trained) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_returns_the_best_so_far_and_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    given = {"validation": 0.2, "epochs": 4, "batch_size": 64, "learning_rate": 0.05}
    before = signal.getsignal(signal.SIGINT)  # a shell that runs this in the background has it ignored
    whole = sned.finetune(digit_net(), digits(), **given)
    stopped = sned.finetune(digit_net(), digits(), folder=tmp_path, parts=[At(17, _ctrl_c)], **given)
    assert stopped.stopped == "interrupted"
    assert len(stopped.history) == 2
    assert stopped.chosen.metric == max(epoch.metric for epoch in stopped.history)
    assert "stopped by Ctrl-C" in stopped.note
    rest = sned.finetune(digit_net(), digits(), folder=tmp_path, **given)
    assert rest.stopped == "finished"
    assert same(rest.model, whole.model)
    assert [(e.loss, e.metric) for e in rest.history] == [(e.loss, e.metric) for e in whole.history]
    assert signal.getsignal(signal.SIGINT) is before


def test_training_runs_outside_of_the_main_thread() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(sned.finetune(digit_net(), digits(), **QUICK)))
    thread.start()
    thread.join()
    assert found[0].stopped == "finished"


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(tmp_path: Path) -> None:
    def ruin(trained: Trained) -> None:
        with torch.no_grad():
            trained.model.head.bias.fill_(math.nan)

    given = {"validation": 0.2, "epochs": 4, "batch_size": 64, "learning_rate": 0.05, "save_every": 1}
    with pytest.raises(
        TrainingError,
        match=r"at step 16 \(epoch 3\) it, or a weight, became NaN.*last good checkpoint.*half the",
    ) as told:
        sned.finetune(digit_net(), digits(), folder=tmp_path, parts=[At(16, ruin)], **given)
    kept = told.value.kept
    assert len(kept.history) == 2
    assert all(bool(value.isfinite().all()) for value in kept.model.state_dict().values())
    rest = sned.finetune(digit_net(), digits(), folder=tmp_path, **given)
    assert same(rest.model, sned.finetune(digit_net(), digits(), **given).model)


def test_a_batch_that_does_not_fit_is_told_with_one_that_may() -> None:
    class Greedy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 16:
                torch.empty(2**62, dtype=torch.uint8)
            return super().forward(x.flatten(1))

    with pytest.raises(
        TrainingError, match=r"A step on 64 inputs does not fit .* batch_size=32 with accumulate=2"
    ):
        sned.finetune(Greedy(64, 10), digits(), batch_size=64, epochs=1)
    sned.finetune(Greedy(64, 10), digits(0, 64), batch_size=16, accumulate=4, epochs=1)


def test_data_that_end_early_lose_nothing(tmp_path: Path) -> None:
    x, y = digits(0, 128)
    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 128, 32)]
    once = (batch for batch in batches)
    with pytest.raises(TrainingError, match="ended after 0 in epoch 2") as told:
        sned.finetune(digit_net(), once, steps_per_epoch=4, epochs=2, folder=tmp_path)
    assert len(told.value.kept.history) == 1
    rest = sned.finetune(digit_net(), batches, steps_per_epoch=4, epochs=2, folder=tmp_path)
    assert [epoch.epoch for epoch in rest.history] == [1, 2]


def test_a_checkpoint_of_another_plan_or_recipe_is_refused(tmp_path: Path) -> None:
    x, y = digits()
    graph = sned.trace(digit_net(), x[:2])
    units = next(group for group in graph.groups if group.size == 12)
    one, other = (sned.apply(digit_net(), graph.plan({units.name: gone})) for gone in ([0, 1], [2, 3]))
    sned.finetune(one, (x, y), folder=tmp_path, **QUICK)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"its network was cut by another plan\. Give another folder"):
        sned.finetune(other, (x, y), folder=tmp_path, **QUICK)
    with pytest.raises(CheckpointError, match="its network has tensors of other shapes"):
        sned.finetune(digit_net(), (x, y), folder=tmp_path, **QUICK)
    with pytest.raises(CheckpointError, match=r"its learning_rate was 0\.05, not 0\.1"):
        sned.finetune(one, (x, y), folder=tmp_path, **{**QUICK, "learning_rate": 0.1})
    with pytest.raises(
        CheckpointError, match=r"its parts was none, not GradualMasks\(0\.5, weight, all, 0 to"
    ):
        sned.finetune(one, (x, y), folder=tmp_path, parts=[GradualMasks(0.5)], **QUICK)
    with pytest.raises(CheckpointError, match="its teacher was none, not DigitNet"):
        sned.finetune(one, (x, y), folder=tmp_path, teacher=digit_net(), **QUICK)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    (tmp_path / "checkpoint.pt").write_bytes(before[:500])
    with pytest.raises(CheckpointError, match="is damaged"):
        sned.finetune(one, (x, y), folder=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epoch": 3}, "A recipe has no field 'epoch'. Did you mean 'epochs'"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"task": "classify"}, "No task is called 'classify'. Did you mean 'classification'"),
        ({"optimiser": "adam"}, "No optimiser is called 'adam'"),
        ({"schedule": "cosin"}, "No schedule is called 'cosin'"),
        ({"warmup": 1.0}, r"`warmup` must be in \[0, 1\)"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a finite number of at least 0"),
        ({"precision": "fp8"}, "`precision` must be one of"),
        ({"loss": lambda outputs, targets: outputs}, "`loss` must return a scalar tensor"),
        ({"validation": 1.5}, r"must be in \(0, 1\)"),
        ({"patience": 2}, "`patience` goes by validation data, but there are none"),
        ({"metric": lambda outputs, targets: 1.0}, "`metric` goes by validation data"),
        ({"loss": lambda outputs, targets: {}["oops"]}, "`loss` takes .* but failed with KeyError: 'oops'"),
        (
            {"metric": lambda outputs, targets: outputs, "validation": 0.1},
            "`metric` takes .* gives a number, but failed with",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_is_told(changes: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        sned.finetune(digit_net(), digits(), **changes)


def test_a_model_of_another_framework_is_told() -> None:
    with pytest.raises(UserError, match=r"`model` must be a PyTorch model, got dict\."):
        sned.finetune({}, digits())  # type: ignore[arg-type]


def test_an_epoch_whose_metric_is_nan_is_never_the_best() -> None:
    values = iter([0.1, 0.2, math.nan, 0.15, math.nan])
    tuned = sned.finetune(
        digit_net(),
        digits(0, 128),
        validation=digits(128, 160),
        metric=lambda outputs, targets: next(values),
        epochs=4,
    )
    assert [epoch.metric for epoch in tuned.history][::2] == [0.2, 0.15]
    assert tuned.chosen == tuned.history[0]


def test_an_epoch_of_tensors_may_be_shortened() -> None:
    tuned = sned.finetune(digit_net(), digits(0, 600), epochs=2, batch_size=64, steps_per_epoch=3)
    assert tuned.history[-1].step == 6


def test_memory_that_runs_out_elsewhere_is_told() -> None:
    class Greedy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == 50 or not self.training:
                torch.empty(2**62, dtype=torch.uint8)
            return super().forward(x.flatten(1))

    with pytest.raises(TrainingError, match=r"Judging 50 inputs at once does not fit .* Try batch_size=25"):
        sned.finetune(Greedy(64, 10), digits(), validation=digits(0, 50), epochs=1)
    with pytest.raises(TrainingError, match=r"Asking the teacher does not fit .*`cache_bytes=0`"):
        sned.finetune(digit_net(), digits(), teacher=Greedy(64, 10), epochs=1)

    def hungry(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**62, dtype=torch.uint8)

    with pytest.raises(TrainingError, match="A step on 128 inputs does not fit"):
        sned.finetune(digit_net(), digits(), loss=hungry, epochs=1)


def test_a_recipe_is_told_in_the_same_words_in_every_process() -> None:
    class Rate:
        def __call__(self, done: float) -> float:
            return 1.0

    told = Recipe(schedule=Rate(), loss=partial(nn.functional.cross_entropy, label_smoothing=0.2)).told()
    assert (told["schedule"], told["loss"], told["epochs"]) == ("Rate", "cross_entropy", "10")
    assert not any(" at 0x" in words for words in told.values())


def test_nothing_to_train_is_told() -> None:
    with pytest.raises(UserError, match="no parameter of the model has `requires_grad`"):
        sned.finetune(digit_net().requires_grad_(False), digits())
