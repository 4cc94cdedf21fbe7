"""Channels that batch normalisation scales down go first: `importance(u) = |gamma_u|`, 1 on average in every
group.

Where several normalisations share a group (a residual stream), their means. Groups without one fall back to
L2 magnitude, and the scores say so.

Reference: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017.
"""

from __future__ import annotations

import numpy as np

from sned.graph.ir import Graph, Ref
from sned.saliency.magnitude import magnitude
from sned.saliency.registry import Evidence, criterion
from sned.saliency.scores import Scores, from_importance, mean_one
from sned.saliency.units import rows


def scales(graph: Graph) -> frozenset[str]:
    """Names of the parameters that scale the output of a batch normalisation."""
    by_number = {number: name for name, number in graph.parameters.items()}
    weights = (op.args[1] for op in graph.ops if "batch_norm" in op.name)
    return frozenset(by_number[w.id] for w in weights if isinstance(w, Ref) and w.id in by_number)


@criterion("batchnorm", "the scale of the batch normalisation behind a unit", relative=True)
def batchnorm(evidence: Evidence) -> Scores:
    """Units with the smallest BatchNorm scale go first."""
    graph, state = evidence.graph, evidence.state
    gammas = scales(graph)
    importance, without = {}, []
    for group in graph.groups:
        found = [
            rows(s, state[s.parameter]).abs().sum(dim=1).cpu().numpy()
            for s in group.slices
            if s.parameter in gammas
        ]
        if not found:
            without.append(group.name)
        importance[group.name] = (
            mean_one(np.mean([mean_one(f) for f in found], axis=0))
            if found
            else magnitude(graph, group, state, 2)
        )
    note = f"no batch normalisation on {', '.join(without)}: L2 magnitude was used there"
    return from_importance("batchnorm", graph, importance, (note,) if without else ())
