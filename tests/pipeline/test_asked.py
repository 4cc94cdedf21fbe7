"""What a run is asked and given: what is wrong is told before the work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import BudgetError, CalibrationError, DeviceError, SurgeryError, UserError, WriteError
from sned.export import Exported
from sned.export.parity import Parity
from sned.graph.trace import trace
from sned.pipeline.choice import _of_least_error
from sned.search import Found
from tests.pipeline.networks import BATCHES, X, pruned, small


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (None, r"Say how much may remain: give a `Budget`, such as Budget\(sparsity=0\.5\)"),
        ({"macs": "50%"}, r"must be a `sned\.Budget`, such as Budget\(macs=\"50%\"\), got \{'macs'"),
        (sned.Budget(max_loss=0.1), "`max_loss` is measured by `evaluate`"),
    ],
)
def test_budgets_that_ask_for_nothing_or_too_little(budget: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        sned.prune(small(), X, budget=budget)


def test_plan_does_not_take_a_loss() -> None:
    with pytest.raises(BudgetError, match=r"`max_loss` takes networks that are pruned.*use `sned\.prune`"):
        sned.plan(sned.trace(small(), X), budget=sned.Budget(max_loss=0.1))


@pytest.mark.parametrize(
    ("shares", "chosen"), [((0.7, 0.97, 0.99), 1), ((0.7, 0.99), 0), ((0.99, 1.1), 0), ((1.2, 1.1), 1)]
)
def test_of_measured_plans_the_best_that_will_keep_the_latency(
    shares: tuple[float, ...], chosen: int
) -> None:
    """The slower, the less error: one that just keeps it may miss it when it is measured again."""
    plan = trace(small(), X).plan({})
    plans = [Found("knapsack", plan, np.zeros(2, np.int64), {}, error=1 / share) for share in shares]
    assert _of_least_error(list(zip(shares, plans, strict=True))) is plans[chosen]


def test_an_unreachable_budget_names_what_was_asked_and_the_closest() -> None:
    """Not what half of the way would be."""
    with pytest.raises(
        BudgetError, match=r"macs of at most 25,360 was asked, the smallest reachable is 50,720"
    ):
        pruned(rules={"protect": ["*"]})


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the whole network that hold its weights."""

    def export(model: nn.Module, example: Tensor, path: Path) -> Exported:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
        return Exported(path, 4, ("x",), ("y",), True, "", Parity(0.0, 0.0, 1.0, 1), (1,))

    monkeypatch.setattr("sned.pipeline.study.export_onnx", export)


@pytest.mark.usefixtures("written")
def test_a_refused_budget_leaves_no_file_of_the_whole_network(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        pruned(rules={"protect": ["*"]}, out=tmp_path)
    assert list(tmp_path.iterdir()) == []
    for name in ("dense.onnx", "plan.json", "model.safetensors", "model.onnx", "report.json"):
        (tmp_path / name).write_text("of an earlier run")
    with pytest.raises(BudgetError):
        pruned(rules={"protect": ["*"]}, out=tmp_path)
    assert {file.read_text() for file in tmp_path.iterdir()} == {"of an earlier run"}
    assert len([*tmp_path.iterdir()]) == 5


@pytest.mark.usefixtures("written")
def test_a_run_that_fails_behind_its_plan_leaves_nothing_of_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"budget": sned.Budget(sparsity=0.5), "saliency": "l2", "calibration": None, "out": tmp_path}
    pruned(**options)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fails(*args: object) -> None:
        raise SurgeryError("it does not compute what its plan promises")

    monkeypatch.setattr("sned.pipeline.road.made", fails)
    with pytest.raises(SurgeryError):
        pruned(**options)
    same = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert same == {name: before[name] for name in same}
    assert same.keys() >= {"dense.onnx", "plan.json", "model.safetensors"}
    other = small()
    other.head.bias.data += 1  # the plan stays the same
    with pytest.raises(SurgeryError):
        pruned(other, **options)
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() == {"dense.onnx", "plan.json"}
    assert after["plan.json"] == before["plan.json"]
    assert after["dense.onnx"] != before["dense.onnx"]


def test_a_file_where_the_folder_should_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    def untouched() -> Iterator[Tensor]:
        raise AssertionError("inputs were read")
        yield X

    for out in ("file", "file/out"):
        with pytest.raises(WriteError, match=r"Could not write '.*': a file stands"):
            pruned(out=tmp_path / out, calibration=untouched())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"without": 3}, "`without` must be a list of layers by their names in `graph.layers`, got 3"),
        ({"without": [3]}, r"`without` must be a list of layers .*, got \[3\]"),
        ({"saliency": 3}, "`saliency` must be a name, got 3"),
        ({"search_by": ["knapsack"]}, r"`search_by` must be a name, got \['knapsack'\]"),
        ({"match_seconds": "10"}, "`match_seconds` is a time, more than 0 seconds, got '10'"),
    ],
)
def test_arguments_of_the_wrong_kind(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pruned(**asked)


def test_a_plan_takes_a_sparsity_or_a_budget() -> None:
    graph = sned.trace(small(), X)
    with pytest.raises(BudgetError, match="both say how much may remain: give one of them"):
        sned.plan(graph, sparsity=0.5, budget=sned.Budget(macs="50%"))
    with pytest.raises(UserError, match="`saliency` must be a name, got 3"):
        sned.plan(graph, sparsity=0.5, saliency=3)  # type: ignore[arg-type]


def test_too_few_inputs_to_match_on_are_refused_once_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.pipeline.study.scored", lambda *a, **k: pytest.fail("too late"))
    with pytest.raises(CalibrationError, match="at least 32 inputs, got 16"):
        pruned(calibration=BATCHES[:1], match_seconds=1.0)


def test_labels_serve_criteria_that_take_a_loss() -> None:
    graph = sned.trace(small(), X)

    def taylor(labels: Tensor | None) -> Any:
        return sned.plan(graph, sparsity=0.5, saliency="taylor", calibration=BATCHES, labels=labels).removed

    same, other = torch.zeros(32, dtype=torch.int64), torch.arange(32) % 4
    assert taylor(same) == taylor(same)
    assert len({str(taylor(labels)) for labels in (None, same, other)}) > 1
    notes = pruned(labels=same).report.notes
    assert "Labels were given and not looked at: 'reconstruction' needs none." in notes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.zeros(31, dtype=torch.int64),
            "one for every calibration input, in their order, got 31 for 32",
        ),
        (torch.zeros(32), r"must be an int64 tensor .* got torch\.float32"),
        ([0] * 32, "must be an int64 tensor .* got list"),
        (torch.full((32,), 4), r"classes of the network's first output, \[32, 4\] .* from 4 to 4"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        sned.plan(sned.trace(small(), X), sparsity=0.5, saliency="snip", calibration=BATCHES, labels=labels)


def test_labels_without_inputs() -> None:
    with pytest.raises(CalibrationError, match="belong to calibration inputs, and none were given"):
        pruned(calibration=None, labels=torch.zeros(32, dtype=torch.int64))


def failing() -> Iterator[Tensor]:
    yield BATCHES[0]
    raise FileNotFoundError("images/17.png")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([BATCHES[0], torch.full((16, 3, 8, 8), torch.nan)], "must be finite, but batch 1 holds NaN"),
        (
            [torch.zeros(16, 3, 8, 8, dtype=torch.uint8)],
            "must be float32 like the example, got uint8 in batch 0",
        ),
        ([torch.zeros(16, 1, 8, 8)], r"must have shape \[any, 3, 8, 8\] like the example"),
        ([(BATCHES[0], torch.zeros(16, dtype=torch.long))], "needs no labels"),
        ([None], "must be tensors or NumPy arrays, got NoneType"),
        ([], "at least one batch of inputs, got none"),
        (failing(), r"`calibration` failed with FileNotFoundError at batch 1: images/17\.png"),
    ],
)
def test_calibration_that_is_wrong_says_how(batches: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        pruned(calibration=batches)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([BATCHES[0][:1]], "fitted to and decided as well"),
        ([torch.zeros(32, 3, 8, 8)], "Repair chose"),
        ([BATCHES[0][:1].repeat(32, 1, 1, 1)], "Repair chose"),
    ],
    ids=["one input", "zeros", "all alike"],
)
def test_few_or_constant_inputs_are_regularised_and_told(batches: list[Tensor], message: str) -> None:
    result = pruned(calibration=batches)
    assert message in " ".join(result.report.notes)
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())


def test_constant_channels_and_dead_layers_do_no_harm() -> None:
    for gone in (slice(2, 3), slice(None)):
        model = small()
        with torch.no_grad():
            model.get_submodule("features")[0].weight[gone] = 0
        result = pruned(model)
        assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "a finite number"), ("good", "a finite number")]
)
def test_measures_that_are_no_number(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pruned(evaluate=lambda model: value)


@pytest.mark.parametrize(
    ("asked", "rule"),
    [({"threads": 4096}, "`threads` must lie between"), ({"runtime": "coreml"}, "`runtime` must be one")],
)
def test_what_the_device_cannot_run_is_told_before_calibration(
    asked: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.pipeline.study.calibrate", lambda *a, **k: pytest.fail("too late"))
    with pytest.raises(DeviceError, match=rule):
        pruned(budget=sned.Budget(macs="50%", **asked))


def test_nothing_is_measured_for_a_device_that_is_not_here() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()  # fmt: skip
    batches = list(torch.randn(32, 3, 32, 32).split(16))
    budget = sned.Budget(latency_ms="60%", device="pixel-9")
    report = sned.prune(wide, batches[0][:1], budget=budget, calibration=batches).report
    notes = " ".join(report.notes)
    assert "nothing was measured on pixel-9" in notes
    assert "measured; the chosen" not in notes
    asked, after = report.asked.limits["latency_ms"], report.after.predicted_latency_ms
    assert after is not None
    assert 0.8 * asked < after <= asked


@pytest.mark.parametrize("saliency", [None, "l1", "geometric-median"])
def test_no_layer_is_emptied_where_weights_alone_rank_units(saliency: str | None) -> None:
    """All weights are drawn alike, so that no layer has more of little use than another."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    graph = sned.trace(model, torch.randn(1, 3, 16, 16))
    plan = sned.plan(graph, budget=sned.Budget(macs="50%"), saliency=saliency)
    kept = [1 - len(plan.removed.get(group.name, ())) / group.size for group in graph.groups]
    assert min(kept) > 0.4


def test_the_report_says_why_a_ranking_was_taken() -> None:
    notes = " ".join(pruned(calibration=None).report.notes)
    assert "chosen by 'global', the default where importances rank units" in notes
