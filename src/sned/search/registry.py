"""Searches by name, all called the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sned.errors import UserError, close_names
from sned.search.space import Found, Problem

Run = Callable[[Problem], Found]


@dataclass(frozen=True)
class Searcher:
    """A way to decide how much goes where: its name, one line for lists, and the function."""

    name: str
    summary: str
    run: Run


SEARCHES: dict[str, Searcher] = {}
"""Every search by name; importing `sned.search` fills it."""


def searcher(name: str, summary: str) -> Callable[[Run], Run]:
    """Register a function from `Problem` to `Found` under a name."""

    def register(run: Run) -> Run:
        SEARCHES[name] = Searcher(name, summary, run)
        return run

    return register


def search_named(name: str) -> Searcher:
    """The search called `name`.

    Raises:
        UserError: there is none; close names are listed.
    """
    found = SEARCHES.get(name)
    if found is None:
        raise UserError(f"No search is called {name!r}. {close_names(name, SEARCHES)}")
    return found


def search(name: str, problem: Problem) -> Found:
    """Run the search called `name`.

    Raises:
        UserError: no search is called so; close names are listed.
        BudgetError: the limits cannot be met; the text says the smallest reachable and by which plan.
        PlanError: the problem's rules do not fit the graph.
    """
    return search_named(name).run(problem)
