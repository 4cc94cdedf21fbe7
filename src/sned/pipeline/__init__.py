"""The short road, from a model, an example and a budget to a smaller model that keeps the budget, with proof.

The only package that sees all stages, and the only one that loops back: a measured latency that misses its budget
tightens the search. `asked` → `study` → `choice` (with `loss`) → `making` → the report, along `road`.
"""

from sned.pipeline.road import Result, plan, prune

__all__ = ["Result", "plan", "prune"]
