"""What is measured on the way is measured as the network runs."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import ExportError
from sned.export import Exported
from sned.export.parity import Parity
from sned.pipeline.study import keep, measure, told_apart
from sned.timing import Latency
from tests.calibration.test_answers import Many
from tests.pipeline.networks import BATCHES, pruned, small


class OneSize(nn.Module):
    """Runs at one batch size only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.more, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.more(self.norm(self.conv(x)).relu()).relu().mean((2, 3))
        return self.head(y.view(self.batch, 8))


def images(count: int, batch: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(batch))


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that files are timed on."""
    shapes: list[tuple[int, ...]] = []

    def timed(files: Mapping[str, Any], given: Mapping[str, Any], **options: Any) -> dict[str, Latency]:
        shapes.extend(value.shape for value in given.values())
        return {name: Latency(1.0, 1.0, 1.0, 1, 1) for name in files}

    monkeypatch.setattr(importlib.import_module("sned.pipeline.study"), "measure_onnx", timed)
    for module in ("study", "choice", "road"):
        monkeypatch.setattr(f"sned.pipeline.{module}.measure", measure)
    return shapes


def test_a_network_of_one_batch_size_is_timed_at_that(fed: list[tuple[int, ...]]) -> None:
    model, inputs = OneSize(6).eval(), images(60, 6)
    sned.prune(model, inputs[0], budget=sned.Budget(macs="50%"), calibration=inputs)
    assert fed
    assert set(fed) == {(6, 3, 8, 8)}


def test_a_file_of_one_batch_size_is_timed_at_that(
    fed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pruned network can be written for one batch size alone, both files are timed at it."""
    road = importlib.import_module("sned.pipeline.road")
    written = road.export_onnx

    def fixed(*arguments: Any) -> Exported:
        return replace(written(*arguments), dynamic_batch=False, static_because="Why.", batch=2)

    monkeypatch.setattr(road, "export_onnx", fixed)
    example, budget = torch.zeros(2, 3, 8, 8), sned.Budget(macs="50%")
    report = sned.prune(small(), example, budget=budget, calibration=BATCHES).report
    assert fed == [(1, 3, 8, 8), (2, 3, 8, 8)]
    assert (
        "The file of the pruned network takes 2 inputs at once alone, and was timed so. Why." in report.notes
    )


@pytest.mark.parametrize("saliency", [None, "taylor", "fisher", "apoz"])
def test_a_network_of_one_batch_size_is_pruned_on_whole_batches(saliency: str | None) -> None:
    model, inputs = OneSize(6).eval(), images(264, 6)
    options = {"budget": sned.Budget(macs="50%"), "calibration": inputs, "saliency": saliency}
    assert sned.prune(model, inputs[0], **options).plan.removed


def test_random_inputs_come_in_whole_batches_too() -> None:
    for batch in (6, 128):
        model = OneSize(batch).eval()
        result = sned.prune(model, images(batch, batch)[0], budget=sned.Budget(macs="50%"))
        assert result.plan.removed


def test_outputs_without_rows_are_no_matter_and_agreement_is_of_the_first_scores() -> None:
    torch.manual_seed(0)
    model = Many().eval()
    x = torch.randn(100, 4, 3, generator=torch.Generator().manual_seed(1))
    result = sned.prune(model, x[:2], budget=sned.Budget(sparsity=0.5), calibration=[x])
    assert result.plan.removed
    with torch.no_grad():
        dense, small = (each(x[80:])[1][0].argmax(-1) for each in (model, result.model))
    assert result.report.after.agreement == pytest.approx(float((dense == small).float().mean()))


def test_a_model_of_another_plan_or_of_another_kind_does_not_stay_beside_a_plan(tmp_path: Path) -> None:
    model, x = OneSize(2).eval(), images(2, 2)[0]
    graph = sned.trace(model, x)
    study: Any = SimpleNamespace(folder=tmp_path, model=model)

    def found(units: list[int]) -> Any:
        return SimpleNamespace(plan=graph.plan({graph.groups[0].name: units}))

    def standing() -> set[str]:
        return {file.name for file in tmp_path.iterdir()}

    def finished() -> None:
        for name in told:
            (tmp_path / name).touch()

    kept, told = {"model.safetensors", "plan.json"}, {"model.onnx", "report.json", "report.html"}
    (tmp_path / "model.keras").touch()
    finished()
    keep(study, found([0]), sned.apply(model, found([0]).plan))
    assert standing() == kept
    finished()
    keep(study, found([0]))
    assert standing() == kept | told, "the same plan once more"
    keep(study, found([0]), sned.apply(model, found([0]).plan))
    assert standing() == kept, "the same plan, other weights"
    finished()
    keep(study, found([1]))
    assert standing() == {"plan.json"}


def test_the_report_tells_the_batch_sizes_that_surgery_was_verified_at() -> None:
    result = sned.prune(OneSize(6).eval(), images(6, 6)[0], budget=sned.Budget(macs="50%"))
    assert "at batch size 6, the only one that it takes" in result.report.checks[0].detail
    assert "at two batch sizes" in pruned(calibration=None).report.checks[0].detail


def test_what_cannot_be_exported_is_told_before_any_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*arguments: Any) -> Exported:
        raise ExportError("It cannot.")

    def untouched() -> Iterator[Tensor]:
        raise AssertionError("an input was read")
        yield torch.zeros(2, 3, 8, 8)

    monkeypatch.setattr("sned.pipeline.study.export_onnx", export)
    with pytest.raises(ExportError, match="It cannot"):
        pruned(calibration=untouched())


def test_a_size_is_kept_where_the_whole_networks_file_lacks_what_the_repaired_one_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As exporters do: what is all zero is left out, and what is equal kept once."""

    def export(model: nn.Module, example: Tensor, path: Path) -> Exported:
        kept = {tuple(p.flatten().tolist()) for p in model.parameters() if bool(p.any())}
        size = sum(4 * len(values) + 100 for values in kept)
        return Exported(path, size, ("x",), ("y",), True, "", Parity(0.0, 0.0, 1.0, 1), (1,))

    for module in ("study", "road"):
        monkeypatch.setattr(f"sned.pipeline.{module}.export_onnx", export)
    model = small()
    for layer in (model.features, model.more):
        nn.init.zeros_(layer[0].bias)
    report = pruned(model, budget=sned.Budget(size_bytes="60%")).report
    assert report.after.size_bytes <= 0.6 * report.before.size_bytes


def test_parameters_are_told_apart_once_however_many_names_they_have() -> None:
    tied = nn.Parameter(torch.ones(3))
    state = {"a": tied, "b": nn.Parameter(torch.ones(3)), "c": tied, "d": nn.Parameter(torch.zeros(2, 2))}
    found = told_apart({**state, "buffer": torch.zeros(2), "e": nn.Parameter(torch.tensor(0.5))})
    assert found.keys() == {"b", "d"}
    assert bool(found["d"].all())
    assert not torch.equal(found["b"], tied)


class Loss(nn.Module):
    """What training asks of a network: one number for all inputs, with the scores beside it or without."""

    def __init__(self, *, scores: bool) -> None:
        super().__init__()
        self.body, self.scores = small(), scores

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        scores = self.body(x)
        loss = nn.functional.cross_entropy(scores, labels)
        return (loss, scores) if self.scores else (loss,)


@pytest.mark.parametrize("scores", [False, True])
def test_a_network_that_returns_a_loss_alone_is_said_to_be_compared_with_nothing(scores: bool) -> None:
    batches = [(x, torch.arange(len(x)) % 4) for x in BATCHES]
    given = {"budget": sned.Budget(macs="50%"), "calibration": batches}
    example = tuple(tensor[:2] for tensor in batches[0])
    told = "returns no answer to each input .* Return the logits as well"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if scores:
            result = sned.prune(Loss(scores=True).eval(), example, **given)
            assert not any("no answer" in note for note in result.report.notes)
            return
        with pytest.raises(UserWarning, match=told):  # before the long work
            sned.prune(Loss(scores=False).eval(), example, **given)
    with pytest.warns(UserWarning, match=told):
        result = sned.prune(Loss(scores=False).eval(), example, **given)
    assert "no answer to each input" in result.report.notes[0]
