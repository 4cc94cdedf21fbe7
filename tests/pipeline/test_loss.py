"""As small as a loss allows, and what is kept of a run that is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.errors import BudgetError
from tests.pipeline.networks import X, pruned, small, weights


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


def test_limits_that_cannot_be_reached_are_told() -> None:
    budget = sned.Budget(max_loss=0.5, device="pixel-9")
    result = pruned(budget=budget, rules={"at_least": {"*": 8}}, evaluate=weights)
    assert any(
        "none of the 6 limits on latency_ms that were tried can be reached" in n for n in result.report.notes
    )


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
