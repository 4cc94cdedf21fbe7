"""Zeros inside the tensors of a network, layer after layer, each layer answering for the zeros before it.

The least squares of `reconstruct` finds the best dense weights of a consumer on what the thinned network gives it; then
entries leave them one round after another, and those that stay are fitted anew (`calibration/thinning.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sned.calibration import Calibration, Consumer
from sned.calibration.moments import WIDEST
from sned.calibration.patterns import Pattern
from sned.calibration.thinning import held, thinned
from sned.errors import PlanError
from sned.graph.ir import Graph
from sned.graph.replay import State
from sned.progress import SILENT, Progress
from sned.repair.batchnorm import blended, reestimate
from sned.repair.following import norms
from sned.repair.reconstruct import Options, Solved, reconstruct
from sned.repair.repair import MARGIN, SHARES, SOLVED, Candidate, Judge, held_out, statistics_inputs
from sned.repair.shares import densities
from sned.surgery.masks import with_masks_of


@dataclass(frozen=True, eq=False)
class Thinned:
    """A network with zeros inside its tensors.

    Attributes:
        state: parameters and buffers by name.
        masks: `{parameter: bool}`, like the parameter: where its entries may be other than zero.
        sparsity: share of the entries of those parameters that are zero.
        overall: the same of the entries of all parameters of the network.
        dense: weights that were left as they are, by name.
        candidates: what was tried, and how far its answers are from the dense network's on inputs held out.
        consumers: what the zeros cost each consumer.
    """

    state: dict[str, Tensor] = field(repr=False)
    masks: dict[str, Tensor] = field(repr=False)
    sparsity: float
    overall: float
    dense: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()
    consumers: tuple[Solved, ...] = field(default=(), repr=False)


def thin(
    graph: Graph,
    state: State,
    calibration: Calibration,
    *,
    pattern: Pattern,
    sparsity: float | None = None,
    progress: Progress = SILENT,
    workdir: Path | None = None,
) -> Thinned:
    """Put zeros into every consumer of a network. No labels, no gradients.

    Layers whose loss the answers feel keep more (`shares.py`): a ranking by the error of the layers' own outputs did
    worse than the same share of each. Weights that several ops share, or that are too wide to repair, stay dense.

    Zeros that masks of the network hold stay, and count.

    Args:
        graph: of the network as it is (trace a pruned one anew).
        state: its parameters and buffers by name.
        calibration: of this very graph.
        pattern: of the zeros.
        sparsity: share of zeros in all, in (0, 1), for single weights and blocks; an N:M pattern has its own, the same
            everywhere. On random inputs, which tell nothing of the answers, it is the same everywhere too.
        progress: shown while it runs.
        workdir: where activations are spooled to when there are many.

    Raises:
        PlanError: no sparsity where the pattern needs one, or one that contradicts it.
    """
    asked = pattern.share(sparsity)
    plan = with_masks_of(graph.model, graph.plan({}))
    weights = frozenset(_thinnable(calibration, pattern))

    def alone(consumer: Consumer, weight: Tensor, second: Tensor, density: float) -> Tensor:
        return thinned(weight, second, consumer.window, pattern, density, stay=weight != 0)

    kept = dict.fromkeys(weights, 1 - asked)
    if pattern.fixed is None and not calibration.synthetic:
        kept = densities(graph, state, calibration, weights, alone, 1 - asked, progress=progress)

    def zeros(consumer: Consumer, stay: Tensor, weight: Tensor, second: Tensor) -> Tensor:
        if consumer.weight not in weights:
            return held(stay, weight, second)
        return thinned(weight, second, consumer.window, pattern, kept[consumer.weight], stay=stay)

    start = held_out(calibration, graph)
    fitted = start or calibration.count
    solved, consumers = reconstruct(
        graph,
        state,
        plan,
        calibration,
        count=fitted,
        options=Options(thin=zeros),
        progress=progress,
        workdir=workdir,
    )
    solved = {name: value for name, value in solved.items() if name not in graph.aliases}
    judge = Judge(graph, plan, calibration, start)
    tried = {SOLVED: solved}
    if norms(graph) and not calibration.synthetic:
        seen = calibration.batches(0, statistics_inputs(graph, calibration, fitted))
        statistics = reestimate(graph, solved, seen, plan)
        tried |= {f"BatchNorm moved {share:.0%}": blended(solved, statistics, share) for share in SHARES}
    judged = [Candidate(name, judge(candidate)) for name, candidate in tried.items()]
    best = min(judged, key=lambda one: one.divergence.key * (1 if one.name == SOLVED else 1 + MARGIN))
    chosen = tried[best.name]
    masks = {name: chosen[name] != 0 for name in sorted(weights | plan.masks.keys()) if name in chosen}
    zero, total = sum(int((~m).sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    entire = {
        name: chosen[name] for name in graph.parameters if name in graph.trainable - graph.aliases.keys()
    }
    return Thinned(
        state=chosen,
        masks=masks,
        sparsity=zero / total,
        overall=zero / sum(tensor.numel() for tensor in entire.values()),
        dense=tuple(name for name, tensor in entire.items() if tensor.ndim > 1 and name not in masks),
        candidates=tuple(judged),
        consumers=consumers,
    )


def _thinnable(calibration: Calibration, pattern: Pattern) -> list[str]:
    """The weights that one op alone reads, with enough inputs to choose among."""
    fewest = max(pattern.of, pattern.columns, 2)
    found = [
        consumer.weight
        for consumer in calibration.consumers
        if not consumer.shared and consumer.channels >= fewest and consumer.width <= WIDEST
    ]
    if not found:
        raise PlanError(
            f"No weight of this network can be thinned: none is read by one op alone and has {fewest} inputs or more. "
            "Ask for a pattern of fewer columns, untie weights that several ops share, or remove units instead "
            "(`sned.prune`)."
        )
    return found
