"""What each ATen op does to labels: one small function an op family, registered by the op's name.

An op without a rule freezes what it touches and is reported by name, so the worst case is a unit that stays.
"""

from sned.graph.rules import basic, contraction, indexing, normalisation, reduction, shape, spatial
from sned.graph.rules.registry import FREEZING, RESIZERS, RULES, resize, rule

__all__ = [
    "FREEZING",
    "RESIZERS",
    "RULES",
    "basic",
    "contraction",
    "indexing",
    "normalisation",
    "reduction",
    "resize",
    "rule",
    "shape",
    "spatial",
]
