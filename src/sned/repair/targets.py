"""What a consumer of the pruned network should give, so that what follows comes out as in the dense one."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from sned.calibration import Consumer
from sned.calibration.walk import Live, Walk
from sned.repair.following import Following, Norm, Step
from sned.repair.front import Place

FAINT = 1e-3
"""A BatchNorm factor below this share of the largest is taken for zero: nothing is made up through it."""


class Target:
    """Targets of one consumer, batch by batch.

    The consumer gives `u`, and what follows makes `v = f u + c + s` of it: `f` and `c` of the BatchNorm, `s`
    the other side of the sum; then an activation function may clamp `v`. The dense network reaches `v*` with
    its own `s*`. A bias that other layers share stays as it is, and is part of `c`, not of `u`.

    - Without a clamp `u` should be `(v* - c - s) / f`: the dense output, and what the other side lacks made
      up for.
    - Where `v*` lies beyond a limit of the clamp, anything beyond that limit is as good. So a second look, at
      what the consumer gives meanwhile, asks for `v*` only inside the limits, and for no change where `v` is
      beyond the limit as it should be. Each such look and the solution after it lowers the sum of
      `(v - v*)²` inside and `max(v - low, 0)²` beyond (majorisation-minimisation of a convex function).

    Args:
        consumer: whose outputs are wanted.
        following: what comes after it.
        parts: of the consumer in the pruned network.
        dense: where it stands in the dense network.
        pruned: the pruned network; its norm is read as it is now, before it is solved for.
    """

    def __init__(
        self, consumer: Consumer, following: Following, parts: int, dense: Place, pruned: Walk
    ) -> None:
        self._consumer = consumer
        self._dense = dense
        self._following = following
        self._parts = parts
        self._pruned = pruned
        self._free = free_parameter(consumer, following)
        self._start = pruned.state[self._free] if self._free else None
        self._fixed = pruned.state[consumer.fixed] if consumer.fixed else None
        self._factor, self._shift = self._line()
        self._inverse = (
            None if self._factor is None else torch.where(self._factor == 0, 0.0, 1.0 / self._factor)
        )
        """`1 / f`, and 0 where `f` is faint; None for 1."""

    def _line(self) -> tuple[Tensor | None, Tensor | None]:
        """`f` and `c` by channel; None for 1 and 0."""
        if not self._following.line:
            return None, self._fixed
        some = self._pruned.state[self._consumer.weight]
        factor, shift = some.new_ones(1), some.new_zeros(1) if self._fixed is None else self._fixed
        for each in self._following.line:
            times, plus = self._norm(each) if isinstance(each, Norm) else self._step(each)
            factor, shift = factor * times, shift * times + plus
        return factor.masked_fill(factor.abs() <= FAINT * factor.abs().max(), 0.0), shift

    def _norm(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """What a BatchNorm multiplies with and adds."""
        state = self._pruned.state
        factor = (state[norm.variance] + norm.eps).rsqrt() * (state[norm.weight] if norm.weight else 1.0)
        return factor, -state[norm.mean] * factor + (state[norm.bias] if norm.bias else 0.0)

    def _step(self, step: Step) -> tuple[Tensor, Tensor]:
        """What a step multiplies with and adds."""
        value = self._pruned.constant(step.constant, step.op).flatten()
        one, nothing = torch.ones_like(value), torch.zeros_like(value)
        return {
            "add": (one, value),
            "sub": (one, -value),
            "mul": (value, nothing),
            "div": (1 / value, nothing),
        }[step.kind]

    def wanted(self, dense: Live, pruned: Live) -> tuple[Tensor, ...]:
        """What to aim at without regard to the clamp, and the other side of the sum where there is one; both shaped as
        the output in the pruned network."""
        output = self._pruned.kept(self._consumer.output, dense[self._dense.output])
        if self._fixed is not None:
            output = output - self._along(self._fixed, output)
        other, order = self._following.other, self._following.order
        if other is None or self._dense.other is None:
            return (output,)
        here = pruned[other]
        lacking = self._pruned.kept(other, dense[self._dense.other]) - here
        if order is not None:
            back = sorted(range(len(order)), key=order.__getitem__)
            here, lacking = here.permute(back), lacking.permute(back)
        here, lacking = here.reshape(output.shape), lacking.reshape(output.shape)
        factor = self._inverse if self._inverse is None else self._along(self._inverse, output)
        return (output + (lacking if factor is None else lacking * factor), here)

    def goal(self, wanted: Tensor, other: Tensor | None = None) -> Tensor:
        """What enters the clamp where the consumer gives `wanted`: `f wanted + c + s`, columns `[parts, outputs, n]` as
        both are."""
        reached = wanted * self._columns(self._factor, 1.0) + self._columns(self._shift, 0.0)
        return reached if other is None else reached.add_(other)

    def again(self, wanted: Tensor, goal: Tensor, given: Tensor) -> Tensor:
        """What to aim at when the consumer gives `given` meanwhile (with the bias that its norm took up).

        All are columns `[parts, outputs, n]`: what was wanted regardless of the clamp, the `goal` of it, and `given`,
        which is overwritten.
        """
        low, high = self._following.low, self._following.high
        now = given.sub_(wanted).mul_(self._columns(self._factor, 1.0)).add_(goal)
        best = goal
        if high < inf:
            best = torch.where(goal >= high, now.clamp(min=high), best)
        if low > -inf:
            best = torch.where(goal <= low, now.clamp_(max=low), best)
        return (best - goal).mul_(self._columns(self._inverse, 1.0)).add_(wanted)

    def given(self, product: Tensor) -> Tensor:
        """What the consumer gives where `product` is `V x`, columns `[parts, outputs, n]`: its bias added, or what a
        late bias or a norm's mean gained since."""
        if self._free is None or self._start is None:
            return product
        now = self._pruned.state[self._free]
        if self._consumer.bias_inside:
            return product + self._columns(now, 0.0)
        gained = now - self._start
        return product + self._columns(gained if self._consumer.bias else -gained, 0.0)

    def _columns(self, values: Tensor | None, otherwise: float) -> Tensor | float:
        """Values by channel beside columns."""
        if values is None:
            return otherwise
        return values if values.numel() == 1 else values.reshape(self._parts, -1, 1)

    def _along(self, values: Tensor, like: Tensor) -> Tensor:
        """Values by channel, as they lie in the consumer's output."""
        axis = self._consumer.axis
        return (
            values
            if values.numel() == 1
            else values.reshape([-1 if a == axis else 1 for a in range(like.ndim)])
        )


def free_parameter(consumer: Consumer, following: Following) -> str | None:
    """The parameter that can take up a constant: the consumer's bias, else the mean of the norm after it."""
    if consumer.bias is not None:
        return consumer.bias
    return following.norm.mean if following.norm else None
