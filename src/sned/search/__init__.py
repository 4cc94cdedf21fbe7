"""How much goes, and where.

In: a graph, the scores of its groups, what plans cost, the limits, and what the user says of single groups.
Out: a plan, checked against the true cost of the whole.
"""

from sned.search import global_ranking, knapsack, manual, uniform
from sned.search.curve import curve
from sned.search.registry import SEARCHES, Searcher, search, search_named
from sned.search.remeasured import remeasured
from sned.search.rules import Rules
from sned.search.space import UNITS, Found, Problem

__all__ = [
    "SEARCHES",
    "UNITS",
    "Found",
    "Problem",
    "Rules",
    "Searcher",
    "curve",
    "global_ranking",
    "knapsack",
    "manual",
    "remeasured",
    "search",
    "search_named",
    "uniform",
]
