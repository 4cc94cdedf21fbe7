"""How much can flow through a unit, by its weights alone: for networks that are yet to be trained, without
data.

`importance(u) = sum over the weights w of u of  |w| dR/d|w|  /  R`, with `R` the sum of the outputs for an
input of ones when every weight is replaced by its absolute value, in double precision. What flows has to be
conserved from layer to layer, so each op is made linear and positive: activation functions pass everything,
normalisations only scale (by their weight, and a running deviation where they keep one), what is added to the
flow (biases, masks, positions) is left out, differences are sums, and softmax is one plus its argument, as
near zero, counted in the argument's mean. Where two flows are multiplied (attention, gates) the product is
divided by the root of the product of their means, so that it stays of the first degree, and each conducts
half.

The score is that of one pass; the paper scores and cuts a hundred times over.

Reference: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow
(SynFlow), 2020, equation 3 and algorithm 1; there of single weights, here summed over those of a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sned.calibration.consumers import VIEWS
from sned.graph.example import Leaf
from sned.graph.ir import Graph, Op, Ref
from sned.graph.replay import Replay
from sned.graph.rules.basic import ELEMENTWISE
from sned.saliency.magnitude import magnitude
from sned.saliency.registry import Evidence, State, criterion
from sned.saliency.scores import Scores, from_importance
from sned.saliency.units import owned, weights

LARGE = 1e100
"""A flow above this is scaled down with everything beside it; deep networks reach it, and a few ops more would
leave the range of double precision."""


@criterion("synflow", "how much can flow through a unit, by its weights alone (SynFlow)")
def synflow(evidence: Evidence) -> Scores:
    """Units through which the least can flow go first.

    Groups that no flow reaches fall back to L2 magnitude, and the scores say so.
    """
    graph, state = evidence.graph, evidence.state
    flow = synaptic_flow(graph, state)
    importance, dry = {}, []
    for group in graph.groups:
        kernels = {s.parameter for s in weights(graph, group)}
        found = owned(group, {name: value for name, value in flow.items() if name in kernels})
        if not (np.isfinite(found).all() and found.any()):
            dry.append(group.name)
            found = magnitude(graph, group, state, 2) / group.size
        importance[group.name] = found
    note = f"no flow reaches the units of {', '.join(dry)}: L2 magnitude was used there"
    return from_importance("synflow", graph, importance, (note,) if dry else ())


def synaptic_flow(graph: Graph, state: State) -> dict[str, Tensor]:
    """`|w| dR/d|w| / R` of every trainable parameter, float64, in its shape: see the head of this file."""
    wide = {name: t.detach().double() if t.is_floating_point() else t for name, t in state.items()}
    leaves = {
        name: wide[name].abs().requires_grad_()
        for name in graph.parameters
        if name in graph.trainable and wide[name].is_floating_point()
    }
    ones = graph.example.build(_ones)
    with torch.enable_grad():
        outputs, _ = _Conduit(graph, {**wide, **leaves}).run(ones)
        total = torch.stack([out.abs().sum() for out in outputs if out.is_floating_point()]).sum()
        if not total.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        found = torch.autograd.grad(total / total.detach(), list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else (leaf * g).detach()
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def _ones(leaf: Leaf) -> Tensor:
    """What enters: ones; indices are any that the model takes, for all rows of a table flow at once."""
    dtype: torch.dtype = getattr(torch, leaf.dtype)
    if dtype.is_floating_point:
        return torch.ones(leaf.shape, dtype=torch.float64)
    return torch.tensor(leaf.high).expand(leaf.shape).to(dtype)


class _Conduit(Replay):
    """A replay in which every op passes on what flows into it, linearly and without a sign."""

    def __init__(self, graph: Graph, state: State) -> None:
        super().__init__(graph, state)
        self._flowing = {number for number in graph.inputs if self._floating(number)}

    def _floating(self, number: int) -> bool:
        dtype: torch.dtype = getattr(torch, self.graph.tensors[number].dtype)
        return dtype.is_floating_point

    def _constant(self, value: Tensor) -> Tensor:
        return _double(super()._constant(value))

    def _call(
        self, op: Op, args: tuple[Any, ...], kwargs: Mapping[str, Any], live: dict[int, Tensor]
    ) -> None:
        entering = [n for n in op.inputs if n in self._flowing]
        self._hold_in_range(entering, live)
        flows = [live[n] for n in entering]
        given = [live[arg.id] if isinstance(arg, Ref) else arg for arg in args]
        source = op.name in SOURCES
        number = op.outputs[0] if op.outputs else None
        rule = _rule(op) if flows or source else None
        if rule is not None and number is not None and self._floating(number):
            live[number] = rule(flows, given)
        else:
            super()._call(op, args, kwargs, live)
        for number in op.outputs:
            if number in live:
                self._settle(op, number, live, flows=bool(flows) or source)

    def _settle(self, op: Op, number: int, live: dict[int, Tensor], *, flows: bool) -> None:
        """Double precision throughout; weights made of weights (standardised ones) have no sign either."""
        value = live[number] = _double(live[number])
        if not value.is_floating_point():
            return
        if flows:
            self._flowing.add(number)
        elif value.requires_grad and op.name not in VIEWS:
            live[number] = value.abs()

    def _hold_in_range(self, entering: list[int], live: dict[int, Tensor]) -> None:
        """Divide all that flows by one number where it would leave the range: `R` changes by a factor, and
        shares of it do not."""
        largest = max((float(live[n].detach().abs().max()) for n in entering if live[n].numel()), default=0.0)
        if largest > LARGE:
            live |= {n: live[n] / largest for n in self._flowing & live.keys()}


Rule = Callable[[list[Tensor], list[Any]], Tensor]
"""From what flows into an op, and all its arguments, to what flows out of it."""


def _rule(op: Op) -> Rule | None:
    """How an op is made linear and positive; None: it is already."""
    name = op.name.removesuffix("_")
    return RULES.get(name, _passed if op.pointwise or op.name in ELEMENTWISE else None)


def _passed(flows: list[Tensor], given: list[Any]) -> Tensor:
    """Flows add up, in the shape that all arguments broadcast to; nothing else gets in."""
    shape = np.broadcast_shapes(*(tuple(arg.shape) for arg in given if isinstance(arg, Tensor)))
    return sum((flow.expand(shape) for flow in flows[1:]), flows[0].expand(shape).clone())


def _attended(flows: list[Tensor], _: list[Any]) -> Tensor:
    return flows[0] + flows[0].detach().mean()


def _scaled(flows: list[Tensor], given: list[Any]) -> Tensor:
    """A product or quotient with something that does not flow, or the product of two flows."""
    first, other = given[:2]
    if len(flows) > 1:
        return _product(first, other, torch.mul)
    flow, factor = (first, other) if first is flows[0] else (other, first)
    return flow * (factor.abs() if isinstance(factor, Tensor) else abs(factor))


def _divided(flows: list[Tensor], given: list[Any]) -> Tensor:
    first, other = given[:2]
    if len(flows) > 1 or first is not flows[0]:
        return _scaled(flows, given)
    return first / (other.abs() if isinstance(other, Tensor) else abs(other))


def _contracted(flows: list[Tensor], given: list[Any]) -> Tensor:
    """A matrix product, whatever is added to it left out."""
    first, other = given[-2:]
    if len(flows) > 1:
        return _product(first, other, torch.matmul)
    if other.ndim == 3 and other.stride(0) == 0:
        # The same matrix for every item of the batch: without this its gradient would be one for each.
        other = other[0]
        product: Tensor = (first.flatten(0, 1) @ other).unflatten(0, first.shape[:2])
        return product
    return torch.matmul(first, other)


def _product(first: Tensor, other: Tensor, times: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of two flows; the scales of both are taken out before they meet, so that nothing overflows."""
    scales = [flow.detach().mean().clamp_min(torch.finfo(torch.float64).tiny) for flow in (first, other)]
    result = times(first / scales[0], other / scales[1]) * (scales[0].sqrt() * scales[1].sqrt())
    return (result + result.detach()) / 2  # half of the gradient goes either way: what flows is conserved


def _convolved(_: list[Tensor], given: list[Any]) -> Tensor:
    x, weight, _bias, *rest = given
    return torch.convolution(x, weight, None, *rest)


def _batch_normalised(_: list[Tensor], given: list[Any]) -> Tensor:
    x, weight, _bias, _mean, variance = given[:5]
    eps = given[-1] if isinstance(given[-1], float) else 1e-5
    scale = x.new_ones(x.shape[1]) if weight is None else weight.abs()
    if variance is not None:
        scale = scale / (variance.double() + eps).sqrt()
    return _by_channel(x, scale)


def _layer_normalised(flows: list[Tensor], given: list[Any]) -> Tensor:
    weight = given[2] if len(given) > 2 else None
    return flows[0].clone() if weight is None else flows[0] * weight.abs()


def _group_normalised(flows: list[Tensor], given: list[Any]) -> Tensor:
    return flows[0].clone() if given[1] is None else _by_channel(flows[0], given[1].abs())


def _by_channel(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale.reshape(-1, *[1] * (x.ndim - 2))


def _gated(_: list[Tensor], given: list[Any]) -> Tensor:
    first, other = given[0].chunk(2, dim=given[1] if len(given) > 1 else -1)
    return _product(first, other, torch.mul)


def _looked_up(_: list[Tensor], given: list[Any]) -> Tensor:
    table, indices = given[:2]
    row: Tensor = table.abs().mean(dim=0)
    return row.expand(*indices.shape, -1).clone()


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("mul", "multiply"), _scaled),
    **dict.fromkeys(("div", "divide", "true_divide"), _divided),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "matmul", "mv", "addmv"), _contracted),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "softmax"), _attended),
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "_batch_norm_with_update",
            "batch_norm",
        ),
        _batch_normalised,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "rms_norm"), _layer_normalised),
    "native_group_norm": _group_normalised,
    "convolution": _convolved,
    "glu": _gated,
    "embedding": _looked_up,
}
"""Ops that are not linear and positive as they are; those that work value by value pass all (`_passed`)."""

SOURCES = frozenset({"embedding"})
"""Ops that a flow may start from, though none enters them."""
