"""Oracles that share nothing with the engine: the user's own forward, run with the removed slices set to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sned import Graph, Plan, apply, trace

LIMIT = 1e-4
"""Largest difference allowed, relative to the largest output."""


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic values that hide nothing: no zero biases, no unit scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
            spread = torch.randn(parameter.shape, generator=generator) / fan**0.5
            parameter.copy_(spread if parameter.ndim > 1 else 0.5 * spread + 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def random_units(
    graph: Graph, sparsity: float | None = 0.5, seed: int = 0, only: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Units to remove: in every cell of every group (or of those named) the same number, picked at random.

    Without a `sparsity` each group gets one of its own.
    """
    rng = np.random.default_rng(seed)
    removed: dict[str, list[int]] = {}
    for group in graph.groups:
        share = float(rng.uniform(0, 0.9)) if sparsity is None else sparsity
        count = min(max(round(group.cell_size * share), 1), group.cell_size - 1)
        if only and group.name not in only:
            continue
        for cell in range(group.cell_count):
            members = np.flatnonzero(group.cells == cell)
            removed.setdefault(group.name, []).extend(rng.permutation(members)[:count].tolist())
    return {name: sorted(units) for name, units in removed.items() if units}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def zeroed(model: nn.Module, graph: Graph, removed: Mapping[str, Sequence[int]], *inputs: Any) -> Any:
    """What the dense network answers with everything that goes set to zero."""
    twins = {id(tensor): tensor.detach().clone() for tensor in state(model).values()}
    named = {name: twins[id(tensor)] for name, tensor in state(model).items()}
    with torch.no_grad(), python_paths():
        for name, units in removed.items():
            for slices in graph.group(name).slices:
                if slices.parameter.endswith("weight.original1") and slices.axis == 0:
                    continue  # a direction of length 0 is no number; its gain of 0 silences the unit of a weight norm
                at = torch.as_tensor(np.unique(slices.positions[list(units)]))
                named[slices.parameter].index_fill_(slices.axis, at, 0)
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            return torch.func.functional_call(model, named, (), inputs[0], tie_weights=False)
        return torch.func.functional_call(model, named, inputs, tie_weights=False)


@contextmanager
def python_paths() -> Iterator[None]:
    """Keep `nn.TransformerEncoderLayer` off its fused path, which calls none of the functions that are patched here."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def flat(value: Any) -> list[torch.Tensor]:
    """Tensors of a nest, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in flat(item)]
    if isinstance(value, tuple | list):
        return [t for item in value for t in flat(item)]
    return [t for item in vars(value).values() for t in flat(item)] if hasattr(value, "__dict__") else []


def distance(a: Any, b: Any) -> float:
    """Largest difference of two answers, relative to the largest number in the second; infinite for other shapes."""
    mine, theirs = ([t.detach() for t in flat(value)] for value in (a, b))
    if [t.shape for t in mine] != [t.shape for t in theirs]:
        return float("inf")
    scale = max([float(t.abs().max()) for t in theirs] + [1e-6])
    gaps = [float((x.double() - y.double()).abs().max()) for x, y in zip(mine, theirs, strict=True)]
    return max(gaps) / scale if not any(np.isnan(gaps)) else float("inf")


def call(model: nn.Module, *inputs: Any) -> Any:
    """The answer of a model in eval mode, without gradients."""
    with torch.no_grad():
        return model(**inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], dict) else model(*inputs)


def size(model: nn.Module) -> int:
    """Number of distinct parameters and buffers' entries."""
    return sum({id(t): t.numel() for t in state(model).values()}.values())


def promised(model: nn.Module, plan: Plan) -> int:
    """That number as the kept indices of a plan say."""
    total, seen = 0, set()
    for name, tensor in state(model).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        axes = plan.kept.get(name, {})
        total += int(
            np.prod([len(axes[a]) if a in axes else n for a, n in enumerate(tensor.shape)], dtype=np.int64)
        )
    return total


def longer(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same inputs with one more sample."""
    return tuple(pytree.tree_map(lambda t: torch.cat([t, t[:1].flip(-1)]), list(inputs)))


def example_of(inputs: tuple[Any, ...]) -> Any:
    """Inputs as `sned.trace` takes them."""
    return inputs[0] if len(inputs) == 1 else inputs


def halved(
    model: nn.Module, *inputs: Any, sparsity: float = 0.5, seed: int = 0
) -> tuple[nn.Module, Graph, Plan]:
    """Trace, take units at random out of every group, and cut."""
    graph = trace(model, example_of(inputs))
    plan = graph.plan(random_units(graph, sparsity, seed))
    return apply(model, plan), graph, plan


def right(model: nn.Module, *inputs: Any) -> nn.Module:
    """Half of every group, held against zeroing; returns what remains."""
    lively(model)
    small, graph, plan = halved(model, *inputs)
    assert graph.groups
    assert distance(call(small, *inputs), zeroed(model, graph, plan.removed, *inputs)) < 1e-4
    return small


@contextmanager
def norms_of_what_is_left() -> Iterator[None]:
    """Normalisations whose statistics leave out channels that are zero everywhere: what removal makes of them.

    Patches the functions of `torch.nn.functional`, so that the user's forward, run with slices set to zero, gives
    what a network without these channels must give.
    """

    def there(x: Tensor, axis: int) -> Tensor:
        others = [a for a in range(x.ndim) if a != axis % x.ndim]
        return (
            (x != 0).any(dim=others[0], keepdim=True)
            if len(others) == 1
            else (x != 0).amax(others, keepdim=True)
        )

    def layer(
        x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        assert len(shape) == 1
        mask = there(x, -1).to(x.dtype)
        mean = (x * mask).sum(-1, keepdim=True) / mask.sum()
        variance = (((x - mean) * mask) ** 2).sum(-1, keepdim=True) / mask.sum()
        return _affine((x - mean) / (variance + eps).sqrt(), weight, bias, -1)

    def root(x: Tensor, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
        mask = there(x, -1).to(x.dtype)
        square = (x**2).sum(-1, keepdim=True) / mask.sum()
        return _affine(
            x / (square + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt(), weight, None, -1
        )

    def group(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        parts = []
        for part in x.chunk(groups, 1):
            mask = there(part, 1).to(x.dtype).expand_as(part)
            axes = list(range(1, x.ndim))
            count = mask.sum(axes, keepdim=True).clamp(min=1)
            mean = (part * mask).sum(axes, keepdim=True) / count
            variance = (((part - mean) * mask) ** 2).sum(axes, keepdim=True) / count
            parts.append((part - mean) / (variance + eps).sqrt())
        return _affine(torch.cat(parts, 1), weight, bias, 1)

    with ExitStack() as stack:
        for name, function in (("layer_norm", layer), ("rms_norm", root), ("group_norm", group)):
            stack.enter_context(mock.patch.object(torch.nn.functional, name, function))
        yield


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, axis: int) -> Tensor:
    shape = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)]
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)
