"""Rules of the user on the short road: what they do, and what is said where they hold back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sned
from sned.errors import BudgetError, PlanError
from tests.pipeline.networks import X, pruned, small, widths


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
