"""Zeros inside the tensors of a network, layer after layer, each layer answering for the zeros before it.

The least squares of `reconstruct` finds the best dense weights of a consumer on what the thinned network gives it; then
entries leave them one round after another, and those that stay are fitted anew (`calibration/thinning.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sned.calibration import Calibration, Consumer
from sned.calibration.consumers import layout
from sned.calibration.patterns import Pattern
from sned.calibration.thinning import thinned, worth
from sned.errors import PlanError
from sned.graph.ir import Graph
from sned.graph.replay import State, keep_of
from sned.graph.sizes import Sizes
from sned.progress import SILENT, Progress
from sned.repair.batchnorm import blended, reestimate
from sned.repair.following import norms
from sned.repair.reconstruct import Options, Solved, reconstruct
from sned.repair.repair import MARGIN, SHARES, SOLVED, STATISTICS_INPUTS, Candidate, Judge, split

THINNEST = 0.05
"""The least of a layer that stays: what the rest can make up for is overrated where nearly all of it goes."""

BISECTIONS = 40
"""Steps to the limit that leaves as much as asked."""


@dataclass(frozen=True, eq=False)
class Thinned:
    """A network with zeros inside its tensors.

    Attributes:
        state: parameters and buffers by name.
        masks: `{parameter: bool}`, like the parameter: where its entries may be other than zero.
        sparsity: share of the entries of those parameters that are zero.
        density: what stays in each consumer, by the name of its parameter.
        candidates: what was tried, and how far its answers are from the dense network's on inputs held out.
        consumers: what the zeros cost each consumer.
    """

    state: dict[str, Tensor] = field(repr=False)
    masks: dict[str, Tensor] = field(repr=False)
    sparsity: float
    density: Mapping[str, float] = field(repr=False)
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

    How much goes where is one ranking over all layers: an entry is worth what its loss costs after repair, relative to
    the energy of its layer's output. Weights that several ops share, or that are too wide to repair, stay dense.

    Args:
        graph: of the network as it is (trace a pruned one anew).
        state: its parameters and buffers by name.
        calibration: of this very graph.
        pattern: of the zeros.
        sparsity: share of zeros, in (0, 1), for single weights and blocks; an N:M pattern has its own.
        progress: shown while it runs.
        workdir: where activations are spooled to when there are many.

    Raises:
        PlanError: no sparsity where the pattern needs one, or one that contradicts it.
    """
    asked = _asked(pattern, sparsity)
    plan = graph.plan({})
    densities = _densities(graph, state, calibration, pattern, 1 - asked)

    def zeros(consumer: Consumer, weight: Tensor, second: Tensor) -> Tensor:
        density = densities.get(consumer.weight)
        if density is None:
            return weight
        return thinned(weight, second, consumer.window, pattern, density)

    fitted, start = split(calibration, graph)
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
        seen = calibration.batches(0, min(fitted, STATISTICS_INPUTS))
        statistics = reestimate(graph, solved, seen, plan)
        tried |= {f"BatchNorm moved {share:.0%}": blended(solved, statistics, share) for share in SHARES}
    judged = [Candidate(name, judge(candidate)) for name, candidate in tried.items()]
    best = min(judged, key=lambda one: one.divergence.key * (1 if one.name == SOLVED else 1 + MARGIN))
    chosen = tried[best.name]
    masks = {name: chosen[name] != 0 for name in densities}
    zero, total = sum(int((~m).sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    return Thinned(chosen, masks, zero / max(total, 1), densities, tuple(judged), consumers)


def _asked(pattern: Pattern, sparsity: float | None) -> float:
    if pattern.fixed is not None:
        if sparsity is not None and abs(sparsity - pattern.fixed) > 1e-6:
            raise PlanError(
                f"The pattern {pattern.name} makes {pattern.fixed:.0%} of the weights zero, but {sparsity:.0%} was "
                "asked. Leave the sparsity out, or take another pattern."
            )
        return pattern.fixed
    if sparsity is None or not 0 < sparsity < 1:
        raise PlanError(f"`sparsity` is the share of weights that become zero, in (0, 1), got {sparsity}.")
    return sparsity


def _densities(
    graph: Graph, state: State, calibration: Calibration, pattern: Pattern, density: float
) -> dict[str, float]:
    """What stays of each weight, so that `density` of all of them does: one threshold on what entries are worth."""
    sizes = Sizes(graph, keep_of(graph, None))
    found: dict[str, Tensor] = {}
    for consumer in calibration.consumers:
        second = calibration.moments[consumer.op].second
        if consumer.shared or second is None or consumer.channels < max(pattern.of, pattern.columns, 2):
            continue
        weight = state[consumer.weight].detach().flatten()[layout(graph, sizes, consumer).long()].double()
        found[consumer.weight] = _worths(consumer, weight, second, pattern)
    if not found:
        raise PlanError(
            "No weight of this network can be thinned: none is read by one op alone with inputs to spare."
        )
    if pattern.fixed is not None:
        return dict.fromkeys(found, density)
    return _shares(found, density)


def _shares(worths: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """What stays of each weight when all that is worth less than one limit goes, but for `THINNEST` of each."""
    total = sum(values.numel() for values in worths.values())
    every = torch.cat([values.clamp(min=torch.finfo(torch.float64).tiny).log() for values in worths.values()])
    low, high = float(every.min()), float(every.max())
    shares: dict[str, float] = {}
    for _ in range(BISECTIONS):
        limit = (low + high) / 2
        kept = every >= limit
        parts = torch.split(kept, [values.numel() for values in worths.values()])
        shares = {
            name: max(float(part.double().mean()), THINNEST) for name, part in zip(worths, parts, strict=True)
        }
        held = sum(
            share * values.numel() for share, values in zip(shares.values(), worths.values(), strict=True)
        )
        low, high = (limit, high) if held > density * total else (low, limit)
    return shares


def _worths(consumer: Consumer, weight: Tensor, second: Tensor, pattern: Pattern) -> Tensor:
    """Of every entry (or block) of a consumer, relative to the energy of its output."""
    parts = []
    for matrix, moment in zip(weight, second.double(), strict=True):
        energy = (matrix @ moment * matrix).sum().clamp(min=torch.finfo(torch.float64).tiny)
        loss = worth(matrix, moment) / energy
        parts.append(pattern.pooled(loss.reshape(len(matrix), -1, consumer.window)).flatten())
    return torch.cat(parts) / len(parts)
