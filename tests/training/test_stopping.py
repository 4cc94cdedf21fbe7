"""Training that stops early, and what goes wrong: nothing is lost, and what to do is said."""

from __future__ import annotations

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
from sned.errors import CheckpointError, TrainingError, UserError
from sned.training import GradualMasks, Part, Recipe, Trained
from tests.training.networks import digit_net, digits, same

pytest.importorskip("accelerate")

QUICK = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05}


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
