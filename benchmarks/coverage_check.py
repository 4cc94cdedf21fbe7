"""Prune one network to half of every group, through its modules, and hold it against three oracles.

- **Zeroing.** Where every group is exact, the pruned network equals the original with the removed slices
  zeroed. Otherwise the same is asked of a second plan, which takes units only from the groups that are exact.
- **Permuting.** Units of one group and cell are interchangeable: permuting all that they own in the original
  must not change its outputs. That needs neither replay nor surgery, and holds across normalisations as well.
- **Running.** The pruned network runs on another batch size than the one traced, with the original's shapes;
  and in training mode, backwards too, where the original does.

Weights that a library sets to a constant (zero, one, a tiny layer scale) are made random first, and so are
the statistics of every BatchNorm: a branch that is multiplied by zero would agree with anything.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sned
from benchmarks.zoo import COLLECTIONS, Network
from sned.graph.example import arguments, tensors_in
from sned.graph.ir import Graph, Group
from sned.graph.plan import Plan
from sned.graph.rules import RULES
from sned.graph.trace import plain_kernels, state_of

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output of its tensor."""
OTHER_BATCH = 3


@dataclass
class Record:
    """What became of one network; one line of the results. Seconds, shares in [0, 1], relative differences.

    `parameters_left` counts every parameter once; `outside_left` leaves embedding tables out. The differences
    are NaN where an oracle does not apply. `frozen` lists `[units, op, reason, a module]`, most units first.
    """

    collection: str
    name: str
    passes: bool = False
    correct: bool = False
    error: str = ""
    where: str = ""
    ops: int = 0
    groups: int = 0
    inexact: int = 0
    batched: bool = True
    trace_s: float = math.nan
    plan_s: float = math.nan
    apply_s: float = math.nan
    parameters: int = 0
    parameters_left: float = math.nan
    outside_left: float = math.nan
    zeroed: float = math.nan
    zeroed_exact_only: float = math.nan
    permuted: float = math.nan
    changed: float = math.nan
    frozen: list[Any] = field(default_factory=list)
    unsupported: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Trace, groups, plan and apply, verification included."""
        return self.trace_s + self.plan_s + self.apply_s


def check(network: Network, record: Record, *, fraction: float = 0.5, seed: int = 0) -> None:
    """Fill `record` in as far as the network gets.

    Args:
        network: what to prune.
        record: told of each figure as soon as it is known, so that a failure keeps those before it.
        fraction: of the units of every group to remove, in (0, 1); rounded down in each cell.
        seed: of weights, inputs and choice of units.

    Raises:
        Whatever tracing or surgery raises; AssertionError where an oracle disagrees.
    """
    torch.manual_seed(seed)
    model = randomised(network.build().eval())
    inputs, other = network.example(2), network.example(OTHER_BATCH)
    start = time.thread_time()
    graph = sned.trace(model, inputs)
    record.groups = len(graph.groups)
    traced = time.thread_time()
    plan = graph.plan(chosen(graph.groups, fraction, seed))
    planned = time.thread_time()
    record.trace_s, record.plan_s = traced - start, planned - traced
    _describe(graph, record)
    planned = time.thread_time()
    small = sned.apply(model, plan)
    record.apply_s = time.thread_time() - planned
    _count(model, small, record)
    other = other if graph.batched else inputs
    expected = _dense(model, other)
    _hold(_finite(expected), "the dense network gives NaN: the check would be vacuous")
    got = _outputs(small, other)
    _same_shapes(got, expected)
    record.changed = difference(got, expected)
    _hold(record.changed > TOLERANCE, "pruning changed nothing: the check would be vacuous")
    exact = [group for group in graph.groups if group.exact]
    if len(exact) == len(graph.groups):
        record.zeroed = difference(got, _dense(model, other, zeroed(model, graph, plan)))
        _hold(record.zeroed <= TOLERANCE, f"differs from the zeroed original by {record.zeroed:.2g}")
    elif exact:
        part = graph.plan(chosen(exact, fraction, seed))
        partly = _outputs(sned.apply(model, part), other)
        record.zeroed_exact_only = difference(partly, _dense(model, other, zeroed(model, graph, part)))
        _hold(
            record.zeroed_exact_only <= TOLERANCE,
            f"exact groups alone: differs from the zeroed original by {record.zeroed_exact_only:.2g}",
        )
    record.permuted = _after_permuting(model, graph, other, expected, seed)
    _hold(record.permuted <= TOLERANCE, f"permuting units changes the output by {record.permuted:.2g}")
    _same_training(model, small, other)
    record.correct = True
    collection = COLLECTIONS[network.collection]
    left = record.outside_left if collection.outside_embeddings else record.parameters_left
    record.passes = left <= collection.limit
    if not record.passes:
        record.error = f"{left:.3f} of the parameters remain, more than {collection.limit}"


def _after_permuting(
    model: nn.Module, graph: Graph, inputs: Any, expected: Sequence[Tensor], seed: int
) -> float:
    """How far outputs move when units change places; what may be rounding of a deep network, in double precision."""
    found = difference(_dense(model, inputs, permuted(model, graph, seed)), expected)
    if found <= TOLERANCE:
        return found
    exact, values = copy.deepcopy(model).double(), _double(inputs)
    return difference(_dense(exact, values, permuted(exact, graph, seed)), _dense(exact, values))


def randomised(model: nn.Module) -> nn.Module:
    """Give every constant parameter and every BatchNorm's statistics random values, in place."""
    for module in model.modules():
        statistics = dict(module.named_buffers(recurse=False))
        if "running_mean" in statistics and "running_var" in statistics:
            statistics["running_mean"].normal_(0, 0.3)
            statistics["running_var"].uniform_(0.5, 2)
    with torch.no_grad():
        for value in model.parameters():
            if value.is_floating_point() and value.numel() and bool((value == value.flatten()[0]).all()):
                _make_random(value)
    return model


def _make_random(value: Tensor) -> None:
    if value.ndim >= 2 and value.shape[0] > 1:
        value.normal_(0, 1 / math.sqrt(max(1, value[0].numel())))
    elif float(value.flatten()[0]) == 0:
        value.normal_(0, 0.3)
    else:
        value.uniform_(0.5, 1.5)


def chosen(groups: Iterable[Group], fraction: float, seed: int) -> dict[str, list[int]]:
    """Random units to remove, `{group name: unit numbers}`, equally many from each cell of a group."""
    rng = np.random.default_rng(seed)
    removed = {}
    for group in groups:
        count = int(group.cell_size * fraction)
        cells = [np.flatnonzero(group.cells == cell) for cell in range(group.cell_count)]
        removed[group.name] = [int(unit) for cell in cells for unit in rng.permutation(cell)[:count]]
    return {name: units for name, units in removed.items() if units}


def zeroed(model: nn.Module, graph: Graph, plan: Plan) -> dict[str, Tensor]:
    """What changes of the dense parameters and buffers when every slice that the plan removes is set to zero."""
    state = _copied(model, graph)
    for group in graph.groups:
        units = list(plan.removed.get(group.name, ()))
        for part in group.slices if units else ():
            gone = torch.from_numpy(np.unique(part.positions[units]))
            state[part.parameter].index_fill_(part.axis, gone, 0)
    return state


def permuted(model: nn.Module, graph: Graph, seed: int) -> dict[str, Tensor]:
    """What changes of the dense parameters and buffers when the units of each cell of a group are shuffled."""
    rng = np.random.default_rng(seed)
    state = _copied(model, graph)
    for group in graph.groups:
        order = np.arange(group.size)
        for cell in range(group.cell_count):
            members = np.flatnonzero(group.cells == cell)
            order[members] = rng.permutation(members)
        for part in group.slices:
            index = np.arange(state[part.parameter].shape[part.axis])
            index[part.positions.ravel()] = part.positions[order].ravel()
            state[part.parameter] = state[part.parameter].index_select(part.axis, torch.from_numpy(index))
    return state


def _copied(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Clones of the tensors that a group owns slices of."""
    state = state_of(model)
    touched = {part.parameter for group in graph.groups for part in group.slices}
    return {name: state[name].detach().clone() for name in sorted(touched)}


def _dense(model: nn.Module, inputs: Any, changes: Mapping[str, Tensor] | None = None) -> Sequence[Tensor]:
    """Outputs of a copy, which may keep tables from one pass to the next, with some of its tensors replaced."""
    work = copy.deepcopy(model)
    state = state_of(work)
    with torch.no_grad():
        for name, value in (changes or {}).items():
            state[name].copy_(value)
    return _outputs(work, inputs)


def _double(inputs: Any) -> Any:
    return pytree.tree_map(
        lambda value: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value,
        inputs,
    )


def _outputs(model: nn.Module, inputs: Any) -> Sequence[Tensor]:
    args, kwargs = arguments(inputs)
    with torch.no_grad(), plain_kernels():
        return tensors_in(model(*args, **kwargs))


def _same_training(model: nn.Module, small: nn.Module, inputs: Any) -> None:
    """Hold that a step of training runs, with outputs of the same shapes, where it does on the original."""
    try:
        expected = _trained(model, inputs)
    except (RuntimeError, ValueError, TypeError, AssertionError):
        return  # a network for inference, or one that trains on more inputs than these
    _same_shapes(_trained(small, inputs), expected)


def _trained(model: nn.Module, inputs: Any) -> Sequence[Tensor]:
    """Outputs in training mode, of a copy, after a backward pass."""
    torch.manual_seed(0)
    args, kwargs = arguments(inputs)
    outputs = tensors_in(copy.deepcopy(model).train()(*args, **kwargs))
    loss = torch.stack([t.float().sum() for t in outputs if t.requires_grad]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return outputs


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any output tensor, relative to the largest value of that tensor."""
    worst = 0.0
    for mine, theirs in zip(got, expected, strict=True):
        if theirs.numel():
            a, b = mine.double().nan_to_num(0, 0, 0), theirs.double().nan_to_num(0, 0, 0)
            worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-6))
    return worst


def _finite(tensors: Sequence[Tensor]) -> bool:
    return not any(bool(t.isnan().any()) for t in tensors if t.is_floating_point())


def _same_shapes(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    mine, theirs = ([tuple(t.shape) for t in tensors] for tensors in (got, expected))
    _hold(mine == theirs, f"outputs have shapes {mine} instead of {theirs}")


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _describe(graph: Graph, record: Record) -> None:
    record.ops, record.batched = len(graph.ops), graph.batched
    record.inexact = sum(not group.exact for group in graph.groups)
    record.unread = [name for name in graph.unread if name in graph.trainable]
    names = Counter(op.name for op in graph.ops if op.name not in RULES and not op.pointwise)
    record.unsupported = dict(names.most_common())
    units: Counter[tuple[str, str]] = Counter()
    modules: dict[tuple[str, str], str] = {}
    for frozen in graph.frozen:
        units[frozen.op, frozen.reason] += frozen.size
        modules.setdefault((frozen.op, frozen.reason), frozen.module or frozen.name)
    record.frozen = [[size, *key, modules[key]] for key, size in units.most_common()]


def _count(model: nn.Module, small: nn.Module, record: Record) -> None:
    before, after = _sizes(model), _sizes(small)
    record.parameters = before[0]
    record.parameters_left, record.outside_left = (
        new / max(old, 1) for new, old in zip(after, before, strict=True)
    )


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Parameters, and parameters outside embedding tables."""
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    values = list(model.parameters())
    return sum(p.numel() for p in values), sum(p.numel() for p in values if id(p) not in tables)
