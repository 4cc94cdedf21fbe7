"""Small networks, one for each line of what sned must prune without per-model code."""

from tests.graph.attentive import Cross
from tests.graph.convolutional import Residual, SharedTwice
from tests.graph.cutting import Gated, Modulated, Retention, StateSpace
from tests.graph.registry import NETWORKS
from tests.graph.sequential import LlamaNorm, Tied, tokens
from tests.graph.unusual import Prototypes

__all__ = [
    "NETWORKS",
    "Cross",
    "Gated",
    "LlamaNorm",
    "Modulated",
    "Prototypes",
    "Residual",
    "Retention",
    "SharedTwice",
    "StateSpace",
    "Tied",
    "tokens",
]
