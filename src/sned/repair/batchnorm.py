"""Re-estimate what BatchNorm layers expect of the pruned network's activations. No labels, no gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sned.calibration.answers import joined
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
    seen = _Seen(graph, state)
    for _ in seen.answers(batches, plan):
        pass
    return seen.averages()


def answers_by_batch(
    graph: Graph, state: State, batches: Iterable[Inputs], plan: Plan | None = None
) -> list[Tensor]:
    """What the network answers where every BatchNorm normalises with a batch's own statistics, `[n, ...]` each."""
    return joined(graph, _Seen(graph, state).answers(batches, plan))


class _Seen:
    """What the BatchNorms of a network see, batch by batch."""

    def __init__(self, graph: Graph, state: State) -> None:
        self._graph, self._state = graph, state
        self._norms = {norm.op: norm for norm in norms(graph)}
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def answers(self, batches: Iterable[Inputs], plan: Plan | None) -> Iterator[list[Tensor]]:
        """Run batches, each normalised with its own statistics."""
        replay = Replay(self._graph, self._state, plan, cut=True)
        for inputs in batches:
            with torch.no_grad():
                yield replay.run(inputs, before=self._normalise)[0]

    def averages(self) -> dict[str, Tensor]:
        """Statistics over all batches so far."""
        return {
            name: (total / self._weights[name]).to(self._state[name].dtype)
            for name, total in self._sums.items()
        }

    def _normalise(self, op: Op, live: dict[int, Tensor]) -> None:
        norm = self._norms.get(op.index)
        if norm is None:
            return
        x = live[norm.input].float()
        mean, variance = (value.double() for value in _statistics(x))
        count = x.numel() // x.shape[1]
        for name, value in ((norm.mean, mean), (norm.variance, variance)):
            # A norm that is called twice averages over both calls.
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value * count
            self._weights[name] = self._weights.get(name, 0) + count
            live[self._graph.parameters[name]] = value.to(self._state[name].dtype)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of `[n, channels, ...]`."""
    if x.device.type == "cpu":  # several times as fast there, but not on every device
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
    return mean, variance


def blended(state: State, statistics: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`state` with its statistics moved by `share` in [0, 1] towards re-estimated ones."""
    moved = {name: torch.lerp(state[name], value, share) for name, value in statistics.items()}
    return {**state, **moved}
