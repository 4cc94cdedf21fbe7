"""The short road as a user walks it from Python: what it chose and why, and what bad input gets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import BudgetError, CalibrationError, DeviceError, PlanError, UserError, WriteError
from sned.export import Exported
from sned.export.parity import Parity
from sned.graph.trace import trace
from sned.pipeline import Result
from sned.pipeline.choice import _of_least_error
from sned.pipeline.study import Study
from sned.repair.match import Matched, match
from sned.search import Found
from sned.timing import Latency


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured here is not kept for the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def made_up_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked here hangs on no runtime: every file holds the weights, and every run takes a millisecond."""

    def export(model: nn.Module, example: Tensor, path: Path) -> Exported:
        size = 4 * sum(p.numel() for p in model.parameters())
        return Exported(path, size, ("x",), ("y",), True, "", Parity(0.0, 0.0, 1.0, 1), (1,))

    def measure(
        study: Study, files: Mapping[str, Path], runs: int = 1, clock: Any = None
    ) -> dict[str, Latency]:
        return {name: Latency(1.0, 1.0, 1.0, runs, 1) for name in files}

    for module in ("study", "choice", "road"):
        monkeypatch.setattr(f"sned.pipeline.{module}.measure", measure)
        monkeypatch.setattr(f"sned.pipeline.{module}.export_onnx", export)


class Small(nn.Module):
    """Two groups of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.features(x)).mean((2, 3)))


X = torch.zeros(1, 3, 8, 8)
BATCHES = list(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def pruned(model: nn.Module | None = None, *, budget: Any = None, **options: Any) -> Result:
    given = sned.Budget(macs="50%") if budget is None else budget
    return sned.prune(model or small(), X, budget=given, **{"calibration": BATCHES, **options})


def widths(result: Result) -> list[int]:
    return [group.after for group in result.report.groups]


def weights(model: nn.Module) -> float:
    """A measure of a model that falls with every unit: the share of the parameters that are left."""
    return sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in small().parameters())


def test_a_network_with_zeros_is_the_same_in_the_report_and_once_saved_and_loaded(tmp_path: Path) -> None:
    sparse = sned.sparsify(small(), X, sparsity=0.6, calibration=BATCHES).model
    fresh = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))

    def answers(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(fresh)

    result = pruned(sparse, evaluate=lambda model: float(answers(model).square().sum()))
    sned.save(result.model, tmp_path / "small.safetensors")
    loaded = sned.load(small(), tmp_path / "small.safetensors").eval()
    assert torch.equal(answers(loaded), answers(result.model))
    assert result.report.after.accuracy == pytest.approx(float(answers(loaded).square().sum()))
    assert any("Repair chose 'least squares" in note for note in result.report.notes)


# --- what it chose, and why ------------------------------------------------------------------------------------------


def test_the_report_says_what_was_chosen_and_why() -> None:
    notes = " ".join(pruned().report.notes)
    assert (
        "ranked by 'reconstruction', each group's error weighed by what it does to the answers: the default"
        in notes
    )
    assert "chosen by 'knapsack', the default for a budget" in notes
    notes = " ".join(pruned(calibration=None, budget=sned.Budget(sparsity=0.5)).report.notes)
    assert "ranked by 'l2': the default, for want of calibration inputs" in notes
    assert "chosen by 'uniform', the default for a sparsity" in notes
    assert "Nothing was repaired" in notes


def test_what_was_asked_for_is_said_to_be_and_random_inputs_are_told_of() -> None:
    notes = " ".join(pruned(calibration=None, saliency="snip", search_by="global").report.notes)
    assert "ranked by 'snip', as asked, on random inputs, for want of real ones" in notes
    assert "chosen by 'global', as asked" in notes
    notes = " ".join(pruned(calibration=None, saliency="synflow").report.notes)
    assert "ranked by 'synflow', as asked." in notes


def test_a_budget_that_is_kept_already_removes_nothing_and_says_so() -> None:
    result = pruned(budget=sned.Budget(macs=1e12))
    assert result.plan.removed == {}
    assert "The network keeps the budget as it is, so nothing was removed." in result.report.notes


def test_the_trade_off_curve_comes_from_one_calibration() -> None:
    read = []

    def once() -> Iterator[Tensor]:
        read.append(1)
        yield from BATCHES

    curve = pruned(calibration=once(), budget=sned.Budget(macs="60%")).report.curve
    assert curve is not None
    assert read == [1]
    assert 8 <= len(curve.points) <= 11
    assert sum(point.chosen for point in curve.points) == 1
    assert all(0 <= point.quality <= 1 for point in curve.points)
    assert curve.points[-1].quality == max(point.quality for point in curve.points)


# --- rules -----------------------------------------------------------------------------------------------------------


def test_rules_alone_say_how_much_goes(tmp_path: Path) -> None:
    rules = {"sparsity": {"features.0": 0.5}}
    result = pruned(calibration=None, budget=None, rules=rules)
    assert widths(sned.prune(small(), X, rules=rules)) == [4, 8]
    path = tmp_path / "rules.toml"
    path.write_text('sparsity = {"features.0" = 0.5}')
    graph = sned.trace(small(), X)
    assert (
        sned.plan(graph, rules=path).removed.keys()
        == sned.plan(graph, rules=rules).removed.keys()
        == {"features.0"}
    )
    assert widths(result)[0] == 4, "a budget leaves what the rules say and cuts elsewhere"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"sparsity": {"featurse.0": 0.5}}, r"'featurse\.0', which is no group\. Did you mean 'features\.0'"),
        ({"sparsity": {"features.0": 1.0}}, r"must be in \[0, 1\)"),
        ({"sparsity": {"head": 0.5}}, "Its 4 outputs cannot be cut: output of the model"),
        ({"at_least": {"more.0": 70}}, "asks to keep 70 units of 'more.0', which has 8"),
        ({"sparsity": {3: 0.5}}, "`sparsity` is told by names of groups or patterns, got 3"),
        (["features.0"], "must be a dict with fields such as `protect`, a TOML file .* got list"),
        (
            {"protect": ["features.*"], "sparsity": {"features.0": 0.5}},
            "cannot both lose units and stay whole",
        ),
        (
            {"at_least": {"more.0": 7}, "sparsity": {"more.0": 0.5}},
            "asks 0.5 of the 8 units of 'more.0' to go, and",
        ),
        (
            {"sparsity": {"more.0": 0.5}, "multiple_of": 100},
            r"other rules keep all of it: 'more\.0' keeps 8 of 8 units, not 4 \(`multiple_of` 100\)\. Leave one",
        ),
        (
            {"sparsity": {"*": 0.5}, "protect": ["*"]},
            r"keep all of it: 'features\.0' keeps 8 of 8 units, not 4 \(`protect`\); 'more\.0' keeps 8",
        ),
    ],
)
def test_rules_that_cannot_be_are_refused_before_anything_is_measured(
    rules: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.pipeline.study.calibrate", lambda *a, **k: pytest.fail("too late"))
    with pytest.raises(PlanError, match=message):
        pruned(rules=rules)


def test_rules_that_hold_a_sparsity_back_are_told() -> None:
    def told(rules: Any, budget: Any = None) -> tuple[list[int], list[str]]:
        result = sned.prune(small(), X, budget=budget, rules=rules)
        return widths(result), [note for note in result.report.notes if "hold back" in note]

    asked = "Other rules hold back what `sparsity` asks for: "
    fixed = {"sparsity": {"features.0": 0.5}}
    assert told(fixed) == ([4, 8], [])
    assert told({**fixed, "multiple_of": 7}) == (
        [7, 8],
        [f"{asked}'features.0' keeps 7 of 8 units, not 4 (`multiple_of` 7)."],
    )
    assert told({"sparsity": {"*": 0.5}, "at_least": {"m*": 6}, "protect": ["f*"]}) == (
        [8, 6],
        [
            f"{asked}'features.0' keeps 8 of 8 units, not 4 (`protect`); "
            "'more.0' keeps 6 of 8 units, not 4 (`at_least` 6)."
        ],
    )
    half = sned.Budget(sparsity=0.5)
    held = "'{}' keeps 8 of 8 units, not 4 (`multiple_of` 100)".format
    assert told({"multiple_of": 100}, half) == ([8, 8], [f"{asked}{held('features.0')}; {held('more.0')}."])


def test_a_sparsity_of_less_than_a_unit_is_not_called_a_budget_that_is_kept() -> None:
    notes = sned.prune(small(), X, rules={"sparsity": {"*": 0.01}}).report.notes
    assert "What is asked for leaves no whole unit of any group to go, so nothing was removed." in notes
    assert not any("keeps the budget" in note for note in notes)


def test_a_manual_plan_that_names_nothing_or_misses_the_budget() -> None:
    graph = sned.trace(small(), X)
    with pytest.raises(
        PlanError, match=r"these give none\. Say what goes, such as .*'features\.0': 0\.5.*'more\.0'"
    ):
        sned.plan(graph, sparsity=0.5, search_by="manual")
    with pytest.raises(
        BudgetError, match=r"rules of a manual plan must meet the budget: units of at most 8 was asked"
    ):
        sned.plan(graph, sparsity=0.5, search_by="manual", rules={"sparsity": {"more.0": 0.5}})


# --- layers left out -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual branch of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Deep(nn.Module):
    """Four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*[Block() for _ in range(4)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.blocks(self.stem(x))).mean((2, 3)))


def deep() -> nn.Module:
    torch.manual_seed(0)
    return Deep().eval()


BLOCK_MACS = 2 * 8 * 8 * 9 * 64


def test_layers_alone_are_left_out() -> None:
    model = deep()
    result = sned.prune(model, X, without="blocks.2", calibration=BATCHES)
    assert result.plan.bypassed == ("blocks.2",)
    assert result.plan.removed == {}
    expected = deep()
    expected.blocks[2] = nn.Identity()
    torch.testing.assert_close(result.model(BATCHES[0]), expected(BATCHES[0]))
    report = result.report
    assert report.before.macs - report.after.macs == BLOCK_MACS
    gone = [layer for layer in report.layers if layer.name.startswith("blocks.2.")]
    assert sum(layer.macs_before for layer in gone) == BLOCK_MACS
    assert sum(layer.macs_after for layer in report.layers) == report.after.macs
    assert all(layer.macs_after == 0 for layer in gone)
    assert any(note.startswith("Left out, as asked: blocks.2.") for note in report.notes)


def test_a_budget_counts_the_layers_that_are_left_out(tmp_path: Path) -> None:
    """Half of the whole network, not of what is left."""
    result = sned.prune(
        deep(),
        X,
        without=["blocks.1", "blocks.2"],
        calibration=BATCHES,
        budget=sned.Budget(macs="50%"),
        out=tmp_path,
    )
    assert 0.4 <= result.report.after.macs / result.report.before.macs <= 0.5
    assert sum(len(units) for units in result.plan.removed.values()) <= 3, "most went with the layers"
    again = sned.load(deep(), tmp_path / "model.safetensors")
    torch.testing.assert_close(again(BATCHES[0]), result.model(BATCHES[0]))


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(PlanError, match=r"not so 'blocks\.7'\. Did you mean 'blocks\."):
        sned.prune(deep(), X, without=["blocks.7"])


# --- budgets ---------------------------------------------------------------------------------------------------------


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


def test_a_refused_budget_leaves_no_file_of_the_whole_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(model: nn.Module, example: Tensor, path: Path) -> Exported:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"onnx")
        return Exported(path, 4, ("x",), ("y",), True, "", Parity(0.0, 0.0, 1.0, 1), (1,))

    monkeypatch.setattr("sned.pipeline.study.export_onnx", export)
    with pytest.raises(BudgetError):
        pruned(rules={"protect": ["*"]}, out=tmp_path)
    assert not (tmp_path / "dense.onnx").exists()
    (tmp_path / "dense.onnx").write_bytes(b"of an earlier run")
    with pytest.raises(BudgetError):
        pruned(rules={"protect": ["*"]}, out=tmp_path)
    assert (tmp_path / "dense.onnx").exists()


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


def test_the_smallest_within_a_loss_is_found_and_told() -> None:
    result = pruned(budget=sned.Budget(max_loss=0.5, macs="80%"), evaluate=weights)
    assert 0.5 <= weights(result.model) < 0.7
    dense = result.report.before.macs
    assert result.report.after.macs <= 0.8 * dense
    [note] = [n for n in result.report.notes if "within the loss allowed" in n]
    assert f"loses {1 - weights(result.model):.4g} of at most 0.5" in note


def test_a_loss_that_the_rest_of_the_budget_exceeds_is_an_error_that_names_the_closest() -> None:
    with pytest.raises(BudgetError, match=r"within macs=40% loses 0\.\d+ by `evaluate`, and at most 0\.3 may go\. "
                       r"The smallest macs found within that loss is \d\d,\d+"):  # fmt: skip
        pruned(budget=sned.Budget(max_loss=0.3, macs="40%"), evaluate=weights)


@pytest.mark.parametrize("amounts", [{}, {"macs": "60%"}])
def test_rules_that_alone_exceed_the_loss_are_told(amounts: dict[str, str]) -> None:
    fixed = {"sparsity": {"features.0": 0.5}}
    cut = sned.apply(small(), sned.plan(sned.trace(small(), X), rules=fixed))
    match = rf"but that alone loses {1 - weights(cut):.4g} by `evaluate`, and at most 0.01 may go\. Take less"
    with pytest.raises(BudgetError, match=match):
        pruned(budget=sned.Budget(max_loss=0.01, **amounts), rules=fixed, evaluate=weights)


def test_nothing_goes_where_everything_costs_too_much() -> None:
    result = pruned(budget=sned.Budget(max_loss=0.0), evaluate=weights)
    assert result.plan.removed == {}
    assert any(note.startswith("Nothing was removed: each of") for note in result.report.notes)


def test_the_best_so_far_is_kept_when_the_user_stops(tmp_path: Path) -> None:
    """The second network that keeps the loss is evaluated when Ctrl-C comes: the first is there."""
    seen = []

    def evaluate(model: nn.Module) -> float:
        seen.append(model)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        pruned(budget=sned.Budget(max_loss=0.1, macs="80%"), evaluate=evaluate, out=tmp_path)
    kept = sned.load(small(), tmp_path / "model.safetensors")
    for name, tensor in seen[2].state_dict().items():
        assert torch.equal(tensor, kept.state_dict()[name])


# --- calibration inputs ----------------------------------------------------------------------------------------------


def test_matching_learns_from_more_inputs_than_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("sned.calibration.calibrate"), "FEWEST", 24)
    monkeypatch.setattr(importlib.import_module("sned.calibration.calibrate"), "MOST", 24)
    many = [*BATCHES, *list(torch.randn(48, 3, 8, 8).split(16))]
    given: list[int] = []

    def matched(model: nn.Module, dense: nn.Module, batches: Any, **options: Any) -> Matched:
        given.extend(len(batch[0]) for batch in batches)
        return match(model, dense, [(torch.cat(many),)], steps=2)

    monkeypatch.setattr(importlib.import_module("sned.repair.match"), "match", matched)
    result = pruned(calibration=many, match_seconds=1.0)
    assert sum(given) == 80
    assert result.report.asked.calibration == (
        "24 calibration inputs, without labels, and 56 more to match the network on"
    )
    given.clear()
    pruned(calibration=many)
    assert given == []


@pytest.mark.parametrize(
    ("given", "compared", "told"),
    [
        (32, slice(26, 32), "6 calibration inputs that repair held out"),
        (10, slice(10), "10 calibration inputs"),
    ],
)
def test_agreement_is_that_on_inputs_that_repair_did_not_fit_to(
    given: int, compared: slice, told: str
) -> None:
    inputs = torch.cat(BATCHES)[:given]
    result = pruned(calibration=[inputs])
    with torch.no_grad():
        same = small()(inputs[compared]).argmax(1) == result.model(inputs[compared]).argmax(1)
    assert result.report.after.agreement == pytest.approx(float(same.float().mean()))
    assert result.report.asked.compared == told


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
    assert "plans were measured" not in notes
    asked, after = report.asked.limits["latency_ms"], report.after.predicted_latency_ms
    assert after is not None
    assert 0.8 * asked < after <= asked
