"""What a consumer of the pruned network should give, so that what follows comes out as in the dense one."""

from __future__ import annotations

import torch
from torch import Tensor

from sned.calibration import Consumer
from sned.calibration.walk import Live, Walk
from sned.repair.following import Following

FAINT = 1e-3
"""A BatchNorm factor below this share of the largest is taken for zero: nothing is made up through it."""


class Target:
    """Targets of one consumer, batch by batch.

    The consumer gives `u`, and what follows makes `v = f u + c + s` of it: `f` and `c` of the BatchNorm, `s`
    the other side of the sum; then an activation function may clamp `v`. The dense network reaches `v*` with
    its own `s*`.

    - Without a clamp `u` should be `(v* - c - s) / f`: the dense output, and what the other side lacks made
      up for.
    - Where `v*` lies beyond a limit of the clamp, anything beyond that limit is as good. So a second look, at
      what the consumer gives meanwhile, asks for `v*` only inside the limits, and for no change where `v` is
      beyond the limit as it should be. Each such look and the solution after it lowers the sum of
      `(v - v*)²` inside and `max(v - low, 0)²` beyond (majorisation-minimisation of a convex function).

    Args:
        consumer: whose outputs are wanted.
        following: what comes after it.
        dense, pruned: both networks; the pruned one's norm is read as it is now, before it is solved for.
    """

    def __init__(self, consumer: Consumer, following: Following, dense: Walk, pruned: Walk) -> None:
        self._consumer = consumer
        self._following = following
        self._dense = dense
        self._pruned = pruned
        self._free = free_parameter(consumer, following)
        self._start = pruned.state[self._free] if self._free else None
        self._factor, self._shift = self._line()

    def _line(self) -> tuple[Tensor | None, Tensor | None]:
        """`f` and `c` by channel; None for 1 and 0."""
        norm, state = self._following.norm, self._pruned.state
        if norm is None:
            late = self._consumer.bias is not None and not self._consumer.bias_inside
            return None, self._start if late else None
        factor = (state[norm.variance] + norm.eps).rsqrt() * (state[norm.weight] if norm.weight else 1.0)
        shift = -state[norm.mean] * factor + (state[norm.bias] if norm.bias else 0.0)
        return factor.masked_fill(factor.abs() <= FAINT * factor.abs().max(), 0.0), shift

    def first(self, dense: Live, pruned: Live) -> Tensor:
        """What to aim at without regard to the clamp: shaped as the output in the pruned network."""
        output = self._output(dense)
        if self._following.other is None:
            return output
        return output + self._lacking(dense, pruned, output) * self._inverse(output)

    def again(self, dense: Live, pruned: Live, given: Tensor) -> Tensor:
        """What to aim at when the consumer gives `given` meanwhile (with the bias that its norm took up)."""
        wanted = self.first(dense, pruned)
        factor, shift = self._affine(wanted)
        other = wanted.new_zeros(())
        if self._following.other is not None:
            other = pruned[self._following.other].reshape(wanted.shape)
        low, high = self._following.low, self._following.high
        goal = factor * wanted + shift + other
        now = factor * given + shift + other
        best = torch.where(
            goal <= low, now.clamp(max=low), torch.where(goal >= high, now.clamp(min=high), goal)
        )
        return wanted + (best - goal) * self._inverse(wanted)

    def given(self, output: Tensor) -> Tensor:
        """An output of the pruned network, with what a late bias or a norm's mean gained since."""
        if self._free is None or self._start is None or self._consumer.bias_inside:
            return output
        gained = self._pruned.state[self._free] - self._start
        return output + self._along(gained if self._consumer.bias else -gained, output)

    def _output(self, dense: Live) -> Tensor:
        return self._pruned.kept(self._consumer.output, dense[self._consumer.output])

    def _lacking(self, dense: Live, pruned: Live, like: Tensor) -> Tensor:
        other = self._following.other
        assert other is not None
        return (self._pruned.kept(other, dense[other]) - pruned[other]).reshape(like.shape)

    def _inverse(self, like: Tensor) -> Tensor:
        """`1 / f`, and 0 where `f` is faint."""
        if self._factor is None:
            return like.new_ones(())
        return self._along(torch.where(self._factor == 0, 0.0, 1.0 / self._factor), like)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        factor = like.new_ones(()) if self._factor is None else self._along(self._factor, like)
        shift = like.new_zeros(()) if self._shift is None else self._along(self._shift, like)
        return factor, shift

    def _along(self, values: Tensor, like: Tensor) -> Tensor:
        """Values by channel, as they lie in the consumer's output."""
        axis = self._consumer.axis
        return values.reshape([-1 if a == axis else 1 for a in range(like.ndim)])


def free_parameter(consumer: Consumer, following: Following) -> str | None:
    """The parameter that can take up a constant: the consumer's bias, else the mean of the norm after it."""
    if consumer.bias is not None:
        return consumer.bias
    return following.norm.mean if following.norm else None
