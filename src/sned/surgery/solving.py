"""What attributes and factors become under a plan: what the labels promise, traced back to what supplied the number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch

from sned.graph import Plan
from sned.graph.formulas import Attribute, Formula, Source, TensorAxis
from sned.graph.ir import Graph, Op
from sned.graph.provenance import Use
from sned.graph.replay import State, overload, sizes_of
from sned.graph.rescale import Rescale
from sned.graph.sizes import Sizes, integers_in


def solved(graph: Graph, sizes: Sizes) -> dict[Attribute, int]:
    """New values of the attributes."""
    return {s: new for s, new in _solved(graph, sizes).items() if isinstance(s, Attribute)}


def factors_of(graph: Graph, sizes: Sizes) -> Iterator[tuple[Rescale, float]]:
    """Every factor that weights make up for, and what the pruned network works out in its place."""
    news = _solved(graph, sizes) if graph.rescales else {}
    for rescale in graph.rescales:
        yield rescale, rescale.formula.evaluate(news)


def made_up(graph: Graph, plan: Plan, sliced: State) -> dict[str, torch.Tensor]:
    """Sliced weights as the pruned module needs them: multiplied by what makes up for factors that it derives anew.

    The replay uses the recorded factors and needs none of this.
    """
    state = dict(sliced)
    for rescale, new in factors_of(graph, sizes_of(graph, plan)) if graph.rescales else ():
        factor = (rescale.value / new) ** rescale.power
        if factor == 1.0:
            continue
        for site in rescale.sites:
            tensor = state[site.parameter].clone()
            if site.positions is None:
                tensor *= factor
            else:
                kept = plan.kept.get(site.parameter, {}).get(site.axis)
                everything = np.arange(graph.tensors[graph.parameters[site.parameter]].shape[site.axis])
                there = np.flatnonzero(np.isin(everything if kept is None else kept, site.positions))
                index = torch.from_numpy(there).to(tensor.device)
                tensor.index_copy_(site.axis, index, tensor.index_select(site.axis, index) * factor)
            state[site.parameter] = tensor
    return state


def _solved(graph: Graph, sizes: Sizes) -> dict[Source, int]:
    """New values of axes and attributes: first from numbers given as they are, then from formulas with one unknown."""
    formulas = [*(use.formula for use in graph.uses), *(rescale.formula for rescale in graph.rescales)]
    news: dict[Source, int] = {
        source: sizes.shape(source.tensor)[source.axis]
        for formula in formulas
        for source in formula.sources
        if isinstance(source, TensorAxis)
    }
    wanted = [(use, new) for use in graph.uses if (new := _wanted(graph, sizes, use, news)) is not None]
    wanted.sort(key=lambda pair: len(pair[0].formula.sources))
    for use, new in wanted:
        if use.formula.evaluate(news) == new:
            continue
        unknown = sorted((source for source in use.formula.sources if source not in news), key=str)
        for source in unknown:
            found = _invert(use, news, source, new)
            if found is not None:
                news[source] = found
                break
    return news


def _invert(use: Use, news: Mapping[Source, int], source: Source, new: int) -> int | None:
    """The value of one source that gives a formula its new value, if one up to the old values does."""
    olds = {each: use.formula.old(each) for each in use.formula.sources}
    old = olds.get(source, 0)
    in_proportion = (old * news[s] // olds[s] for s in use.formula.sources if s in news and olds.get(s))
    for candidate in (new, *in_proportion, *range(1, max(use.value, new, *olds.values()) + 1)):
        try:
            if use.formula.evaluate({**news, source: candidate}) == new:
                return int(candidate)
        except ZeroDivisionError:
            continue
    return None


def _wanted(graph: Graph, sizes: Sizes, use: Use, news: Mapping[Source, int]) -> int | None:
    """What a number must become: as the size that it was compared with, by its place in a shape, or else as equal
    numbers in the ops of the call."""
    if use.equals is not None:
        return int(use.equals.evaluate(news)) if use.equals.sources <= news.keys() else None
    if use.at is not None:
        return sizes.shape(use.at[0])[use.at[1]]
    ops = graph.ops[use.first_op : use.last_op]
    if use.from_end is not None:
        number = next((n for n in ops[-1].outputs if n is not None), None)
        if number is not None and use.from_end <= len(sizes.recorded(number)):
            axis = len(sizes.recorded(number)) - use.from_end
            return sizes.shape(number)[axis] if sizes.recorded(number)[axis] == use.value else None
    if _unchanged(ops, sizes, use.value):
        return use.value
    if (aligned := {new for op in ops for new in _aligned(op, sizes, use)}) and len(aligned) == 1:
        return next(iter(aligned))
    named = {new for op in ops for old, new in _named(op, sizes, use.formula) if old == use.value}
    found = named or {new for op in ops for old, new in _numbers(op, sizes) if old == use.value}
    return next(iter(found)) if len(found) == 1 else None


def _unchanged(ops: Sequence[Op], sizes: Sizes, value: int) -> bool:
    """Whether a number is among the integers of some ops, and all of these stay."""
    met = False
    for op in ops:
        old, new = sizes.integers(op)
        if old is not new and old != new:
            return False
        met = met or value in old
    return met


def _aligned(op: Op, sizes: Sizes, use: Use) -> Iterator[int]:
    """What becomes of the number, if the integers of the call are those of the op, one by one."""
    if len(use.given) > 1 and sizes.integers(op)[0] == use.given:
        yield sizes.integers(op)[1][use.place]


def _named(op: Op, sizes: Sizes, formula: Formula) -> Iterator[tuple[int, int]]:
    """Pairs (old, new) of the argument that is called like the attribute: `groups` of a convolution, not its stride."""
    names = {_stem(source.name) for source in formula.sources if isinstance(source, Attribute)}
    if len(names) != 1:
        return
    args, _ = sizes.arguments(op)
    for argument, old, new in zip(_stems(op.target), sizes.plain(op), args, strict=False):
        if argument in names:
            yield from zip(integers_in(old), integers_in(new), strict=True)


@cache
def _stems(target: str) -> tuple[str, ...]:
    """What the arguments of an op are called."""
    return tuple(_stem(argument.name) for argument in overload(target)._schema.arguments)


@cache
def _stem(name: str) -> str:
    """`num_groups` of a module is `group` of an op."""
    return name.removeprefix("num_").removesuffix("s")


def _numbers(op: Op, sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Pairs (old, new) of every number at an op: its arguments, then axes of its tensors that no argument gives."""
    yield from zip(*sizes.integers(op), strict=True)
    given = set(sizes.integers(op)[0])
    for number in op.outputs:
        if number is not None:
            axes = zip(sizes.recorded(number), sizes.shape(number), strict=True)
            yield from ((old, new) for old, new in axes if old not in given)
