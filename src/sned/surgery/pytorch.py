"""Surgery on a PyTorch module: slice its tensors, repair the numbers in its attributes, prove the result."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from sned.errors import ModelError, SurgeryError
from sned.graph.ir import Graph
from sned.graph.plan import Plan, check_fits
from sned.graph.replay import Replay, keep_of, slice_state
from sned.graph.trace import mode_of, plain_kernels, state_of, trace_example
from sned.surgery.attributes import number_uses, repair_attributes

PLAN_ATTRIBUTE = "_sned_plan"
"""Where a pruned network carries its plan, so that `save` needs nothing else."""

TOLERANCE = 1e-4
"""Largest difference to the replay, relative to the largest output (float32)."""


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A smaller network of the same class; `model` is not touched.

    The copy is run beside the replay of the recorded ops on the sliced weights, at two batch sizes where the network
    takes them; it is handed over only when both give the same output.

    Args:
        model: the network that the plan was made for, or a copy of it with any weights.
        plan: what to remove.

    Returns:
        The pruned network, in the mode (train or eval) of `model`.

    Raises:
        PlanError: the plan was made for another network.
        SurgeryError: the pruned module does not compute what the plan promises.

    Example:
        >>> small = sned.apply(model, sned.plan(sned.trace(model, x), sparsity=0.5))
    """
    graph = trace_example(model, plan.example)
    check_fits(plan, graph)
    small = cut(model, graph, plan)
    verify(small, graph, Replay(graph, state_of(model), plan))
    return small


def cut(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """A copy with sliced tensors and repaired attributes, structure checked on meta tensors, values not yet."""
    try:
        small = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"The model is pruned on a copy, but copying {type(model).__name__} failed: {error}. "
            "Make it work with `copy.deepcopy` (detach tensors that are kept as plain attributes)."
        ) from error
    uses = number_uses(small, graph)
    _replace_tensors(small, slice_state(state_of(small), plan), plan, graph.aliases)
    repair_attributes(small, graph, keep_of(graph, plan), uses)
    earlier = getattr(model, PLAN_ATTRIBUTE, ())
    setattr(small, PLAN_ATTRIBUTE, (*earlier, plan))
    return small


def _replace_tensors(
    model: nn.Module, state: Mapping[str, torch.Tensor], plan: Plan, aliases: Mapping[str, str]
) -> None:
    """Put sliced tensors in; tied parameters stay tied, frozen ones stay frozen."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[str, list[str]] = {}
    for alias, first in aliases.items():
        names.setdefault(first, []).append(alias)
    for first in plan.kept:
        path, _, leaf = first.rpartition(".")
        old = getattr(modules[path], leaf)
        value = state[first].detach().clone()
        new = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
        for name in [first, *names.get(first, [])]:
            path, _, leaf = name.rpartition(".")
            setattr(modules[path], leaf, new)


def verify(small: nn.Module, graph: Graph, replay: Replay) -> float:
    """Run a pruned network beside the replay on random inputs.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        SurgeryError: they differ by more than rounding.
    """
    worst = 0.0
    for batch in (2, 1) if graph.batched else (graph.batch,):
        worst = max(worst, _difference(small, graph, replay, batch))
    return worst


def _difference(small: nn.Module, graph: Graph, replay: Replay, batch: int) -> float:
    from sned.graph.example import tensors_in

    device = next((t.device for t in state_of(small).values()), torch.device("cpu"))
    args, kwargs = graph.example.random(batch)
    args, kwargs = _moved(args, device), _moved(kwargs, device)
    with torch.no_grad(), plain_kernels(), mode_of(small, training=False):
        expected, _ = replay.run((args, kwargs) if kwargs and args else kwargs or args)
        got = tensors_in(small(*args, **kwargs))
    worst = 0.0
    for number, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        if mine.shape != theirs.shape:
            raise SurgeryError(
                f"A pruned network must compute what its plan promises, but output {number} has shape "
                f"{tuple(mine.shape)} instead of {tuple(theirs.shape)}. Please report this network."
            )
        a, b = mine.double(), theirs.double()
        scale = max(float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0, 1e-6)
        difference = float((a - b).abs().nan_to_num(0 if bool((a.isnan() == b.isnan()).all()) else 1e9).max()) / scale
        worst = max(worst, difference)
    limit = TOLERANCE if all(t.dtype in (torch.float32, torch.float64) for t in expected) else 0.05
    if worst > limit:
        raise SurgeryError(
            f"A pruned network must compute what its plan promises, but its outputs differ by {worst:.2g} of the "
            f"largest one at batch size {batch}. The original was not touched. Please report this network."
        )
    return worst


def _moved(value: object, device: torch.device) -> object:
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, value)
