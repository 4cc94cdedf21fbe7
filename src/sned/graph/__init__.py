"""What a network is, whatever framework it came from: a model and an example go in, a `Graph` comes out.

The forward pass is recorded once as ATen ops (`trace`), labels flow through them (`flow`, `rules`), the relations
between labels are solved (`coupling`), and the recorded ops can run again on sliced weights (`replay`).
"""

from sned.graph.ir import Frozen, Graph, Group, Op, Slices, Tensor, Term
from sned.graph.plan import Plan
from sned.graph.replay import Replay
from sned.graph.trace import trace

__all__ = ["Frozen", "Graph", "Group", "Op", "Plan", "Replay", "Slices", "Tensor", "Term", "trace"]
