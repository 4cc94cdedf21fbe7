"""Re-estimate what BatchNorm layers expect of the pruned network's activations. No labels, no gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sned.graph.example import Inputs
from sned.graph.ir import Graph, Op
from sned.graph.plan import Plan
from sned.graph.replay import Replay, State
from sned.repair.following import norms


def reestimate(
    graph: Graph, state: State, batches: Iterable[Inputs], plan: Plan | None = None
) -> dict[str, Tensor]:
    """Running means and variances as training mode would see them, averaged over all inputs.

    Every BatchNorm normalises each batch with that batch's own statistics, as in training, and the averages
    over the batches (weighed by what they hold) become the running statistics.

    Args:
        graph: of the dense network.
        state: parameters and buffers of the network as `plan` leaves it.
        batches: inputs as the model takes them.
        plan: what was removed; None for the dense network.

    Returns:
        New running means and variances by buffer name, nothing else.
    """
    replay = Replay(graph, state, plan, cut=True)
    found = {norm.op: norm for norm in norms(graph)}
    sums: dict[str, Tensor] = {}
    weights: dict[str, int] = {}

    def before(op: Op, live: dict[int, Tensor]) -> None:
        norm = found.get(op.index)
        if norm is None:
            return
        x = live[norm.input].float()
        variance, mean = _statistics(x)
        count = x.numel() // x.shape[1]
        for name, value in ((norm.mean, mean), (norm.variance, variance)):
            # A norm that is called twice averages over both calls.
            sums[name] = sums.get(name, torch.zeros_like(value)) + value * count
            weights[name] = weights.get(name, 0) + count
            live[graph.parameters[name]] = value.to(state[name].dtype)

    with torch.no_grad():
        for inputs in batches:
            replay.run(inputs, before=before)
    return {name: (total / weights[name]).to(state[name].dtype) for name, total in sums.items()}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel of `[n, channels, ...]`, in float64.

    Each image first, whose numbers lie side by side, then all: over axes that lie apart it takes several times as long.
    """
    variances, means = (
        value.double() for value in torch.var_mean(x.reshape(*x.shape[:2], -1), -1, correction=0)
    )
    variance, mean = torch.var_mean(means, 0, correction=0)
    return variance + variances.mean(0), mean


def blended(state: State, statistics: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`state` with its statistics moved by `share` in [0, 1] towards re-estimated ones."""
    moved = {name: torch.lerp(state[name], value, share) for name, value in statistics.items()}
    return {**state, **moved}
