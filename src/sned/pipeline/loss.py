"""The smallest network within a loss, by asking the user's own measure about pruned and repaired ones."""

from __future__ import annotations

from dataclasses import replace

from sned.errors import BudgetError
from sned.measure import evaluated
from sned.pipeline.asked import Evaluate, axis_of
from sned.pipeline.making import made
from sned.pipeline.study import Study, keep
from sned.search import Found, Problem, search
from sned.search.space import amount

STEPS = 6
"""Networks that are evaluated at most to find the smallest within a loss, beside the largest."""


SMALLEST = 0.05
"""Share of a cost at which the search within a loss starts."""


ROUNDING = 1e-9
"""Of a loss."""


def within_loss(
    study: Study, problem: Problem, name: str, largest: Found, base: float, evaluate: Evaluate
) -> tuple[Found, tuple[str, ...]]:
    """The smallest plan whose repaired network loses no more than is allowed, found by bisection over the cost that is
    minimised; `largest` is the best one within the other limits.

    Raises:
        BudgetError: within the other limits more is lost, or by the rules alone.
    """
    allowed, axis = study.budget.max_loss or 0.0, axis_of(study.budget)
    dense = study.dense_costs()[axis]
    lost: dict[int, float] = {}

    def keeps(found: Found) -> bool:
        loss = 0.0
        if found.changes:
            small = made(study, found).small
            loss = base - evaluated(small.model, evaluate)
        lost[id(found)] = loss
        if loss <= allowed + ROUNDING:
            keep(study, found, small.model if found.changes else None)
            return True
        return False

    def bisected(best: Found, low: float, high: float) -> Found:
        for _ in range(STEPS):
            middle = (low + high) / 2
            try:
                found = search(name, replace(problem, limits={**problem.limits, axis: middle * dense}))
            except BudgetError:
                low = middle
                continue
            finally:
                advance(1)
            if keeps(found):
                high, best = middle, found
            else:
                low = middle
        return best

    with study.progress.task("evaluating plans", total=STEPS) as advance:
        share = largest.costs[axis] / dense
        if not keeps(largest):
            whole = search(name, replace(problem, limits={axis: dense}))
            if not keeps(whole):
                raise _taken(study, lost[id(whole)])
            problem = replace(problem, limits={})
            raise _contradiction(study, lost[id(largest)], bisected(whole, share, 1.0).costs[axis])
        best = bisected(largest, min(SMALLEST, share / 2), share)
    if not best.changes and len(lost) == 1:
        return best, (
            f"Nothing was removed: none of the {STEPS} limits on {axis} that were tried can be reached.",
        )
    if not best.changes:
        return best, (
            f"Nothing was removed: each of {len(lost) - 1} smaller networks lost more than {allowed:g}.",
        )
    return best, (
        f"{len(lost)} repaired networks were evaluated to find the smallest {axis} within the loss allowed; the chosen "
        f"one loses {lost[id(best)]:.4g} of at most {allowed:g}, by the very data that chose it.",
    )


def _taken(study: Study, loss: float) -> BudgetError:
    return BudgetError(
        f"`max_loss` and what rules and `without` take away must go together, but that alone loses {loss:.4g} by "
        f"`evaluate`, and at most {study.budget.max_loss:g} may go. Take less away, or allow more loss."
    )


def _contradiction(study: Study, loss: float, closest: float) -> BudgetError:
    budget, axis = study.budget, axis_of(study.budget)
    rest = ", ".join(f"{name}={value}" for name, value in budget.amounts.items())
    return BudgetError(
        f"`max_loss` and the rest of the budget must go together, but the best network within {rest} loses {loss:.4g} "
        f"by `evaluate`, and at most {budget.max_loss:g} may go. The smallest {axis} found within that loss is "
        f"{amount(closest)}: ask for as much, or allow more loss."
    )
