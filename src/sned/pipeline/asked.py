"""What is asked of a run, checked before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sned.calibration import Calibration
from sned.devices import Budget
from sned.errors import BudgetError, CalibrationError, PlanError, UserError
from sned.saliency import CRITERIA, criterion_named
from sned.search import Rules, search_named

Evaluate = Callable[[Any], float]


RULES_ALONE = Budget(macs="100%")
"""What is asked where rules or layers alone say what goes: nothing may get larger."""


AUTO = "auto"
"""Stands for the layers to leave out where `prune` is to choose them."""


def check_deep(budget: Budget, calibrated: bool) -> None:
    """Refuse to choose layers where there is nothing to choose by."""
    if not budget.amounts or budget.max_loss is not None or budget == RULES_ALONE:
        raise BudgetError(
            f"`without={AUTO!r}` shares out between layers and units what a cost is to lose, so it takes a budget with "
            'a cost, such as Budget(latency_ms="50%"), and no `max_loss`. Give one, or name the layers.'
        )
    if not calibrated:
        raise CalibrationError(
            f"`without={AUTO!r}` compares the answers of repaired networks, which takes calibration inputs, a few "
            "hundred without labels. Give `calibration`, or name the layers."
        )


def one_of(sparsity: float | None, budget: Budget | None, rules: Rules) -> Budget:
    """What is asked, as a budget."""
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f'`budget` must be a `sned.Budget`, such as Budget(macs="50%"), got {budget!r}.')
    if sparsity is None and budget is None and rules.sparsity:
        return RULES_ALONE
    if sparsity is None and budget is None:
        raise BudgetError(
            'Say how much may remain: give a `Budget`, such as Budget(sparsity=0.5) or Budget(macs="50%"); or rules '
            "that give groups a sparsity."
        )
    if sparsity is not None and budget is not None:
        raise BudgetError("`sparsity` and `budget` both say how much may remain: give one of them.")
    return budget if budget is not None else Budget(sparsity=sparsity)


def check_names(saliency: str | None, search_by: str | None) -> None:
    """A name that is mistyped is told before any work is done."""
    for what, name, named in (
        ("saliency", saliency, criterion_named),
        ("search_by", search_by, search_named),
    ):
        if name is not None and not isinstance(name, str):
            raise UserError(f"`{what}` must be a name, got {name!r}.")
        if name is not None:
            named(name)


def layers_of(given: Sequence[str] | str) -> tuple[str, ...]:
    """The layers to leave out, of which one alone may be given by its name."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise PlanError(
            f"`without` must be a list of layers by their names in `graph.layers`, got {given!r}."
        )
    return tuple(names)


def checked(labels: torch.Tensor | None, learnt: Calibration | None) -> torch.Tensor | None:
    """Labels, if there is one for every calibration input."""
    if labels is None:
        return None
    if learnt is None or learnt.synthetic:
        raise CalibrationError(
            "`labels` belong to calibration inputs, and none were given. Pass `calibration` too."
        )
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or len(labels.shape) == 0:
        got = str(labels.dtype) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise CalibrationError(
            f"`labels` must be an int64 tensor with a class for every calibration input, got {got}."
        )
    if len(labels) < learnt.count:
        raise CalibrationError(
            f"`labels` must hold one for every calibration input, in their order, got {len(labels)} for {learnt.count}."
        )
    return labels


def rules_of(given: Rules | Mapping[str, Any] | str | Path | None) -> Rules:
    """The rules in any of the forms that a user may give them in."""
    if given is None:
        return Rules()
    if isinstance(given, str | Path):
        return Rules.from_toml(Path(given))
    return given if isinstance(given, Rules) else Rules.from_data(given)


def default_search(budget: Budget, rules: Rules, criterion: str) -> str:
    """The name of the search where none was asked for."""
    if budget.sparsity is not None:
        return "uniform"
    alone = rules.sparsity and budget.amounts == RULES_ALONE.amounts and budget.max_loss is None
    return "manual" if alone else shared_out_by(criterion)


def shared_out_by(criterion: str) -> str:
    """The name of the search that shares a saving out over the groups.

    Importances that are scaled to each group do not add up to an error: the least sum of them empties whichever layer
    saves most for each unit. They rank units, so all go into one ranking.
    """
    return "global" if criterion in CRITERIA and CRITERIA[criterion].relative else "knapsack"


def axis_of(budget: Budget) -> str:
    """The cost that the trade-off curve runs along: the first that is limited, or latency."""
    return next(iter(budget.amounts), "latency_ms")
