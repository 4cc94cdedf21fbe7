"""Labels of several tensors meet: products, sums and whatever else is element by element, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sned.graph.flow import Flow
from sned.graph.ir import IntArray, Op, Ref
from sned.graph.labels import Box, Boxes, covering, lift, line
from sned.graph.zero import Zero, zero

Letters = Sequence[str | None]
"""A name for each axis of an operand; axes of the same name meet. None: the axis has size 1 or is left alone."""


Lifts = Callable[[Iterable[bool]], bool]
"""Whether a result is lifted, from whether its operands are: `all` of a product, `any` of a sum."""


def join(
    flow: Flow,
    operands: Sequence[tuple[Boxes, Sequence[int], Letters]],
    out: Letters,
    *,
    lifts: Lifts = all,
) -> Boxes:
    """Axes of one letter meet, as in an einsum; a letter missing from `out` is summed over.

    `operands` are triples of boxes, shape and letters. Returns the boxes of the result.
    """
    holders: dict[str, list[tuple[int, int, Box | None]]] = {}
    for number, (boxes, shape, letters) in enumerate(operands):
        for axis, letter in enumerate(letters):
            if letter is not None and shape[axis] > 1:
                holders.setdefault(letter, []).append((number, axis, covering(boxes, axis)))
    _unite_rectangles(flow, operands)
    for letter, held in holders.items():
        _meet(flow, held, operands)
        if letter not in out:
            _sum(flow, held)
    return _collect(flow, operands, holders, out, lifts)


def _sum(flow: Flow, held: Sequence[tuple[int, int, Box | None]]) -> None:
    """A sum notices what goes unless one of its factors is zero there."""
    if all(box is not None and box.lifted for _, _, box in held):
        for _, axis, box in held:
            if box is not None:
                flow.spans(flow.axis(box, axis))


def _meet(
    flow: Flow,
    held: list[tuple[int, int, Box | None]],
    operands: Sequence[tuple[Boxes, Sequence[int], Letters]],
) -> None:
    labelled = [(box, axis, _span(box, operands[n][2])) for n, axis, box in held if box is not None]
    if len(labelled) < len(held):
        for box, axis, _ in labelled:
            flow.freeze(flow.axis(box, axis), "meets an axis of fixed size")
        return
    first, first_axis, first_span = labelled[0]
    for box, axis, span in labelled[1:]:
        if span is None or span != first_span:
            flow.unite(flow.axis(first, first_axis), flow.axis(box, axis))


def _span(box: Box, letters: Letters) -> tuple[str | None, frozenset[str | None]] | None:
    """What a rectangle covers, by letter (rectangles of one span are united whole); None for a single axis."""
    return (letters[box.free], frozenset(letters[a] for a in box.axes)) if box.slabs else None


def _unite_rectangles(flow: Flow, operands: Sequence[tuple[Boxes, Sequence[int], Letters]]) -> None:
    seen: dict[tuple[str | None, frozenset[str | None]], tuple[Box, Letters]] = {}
    for boxes, _, letters in operands:
        for box in boxes:
            span = _span(box, letters)
            first, first_letters = seen.setdefault(span, (box, letters)) if span else (box, letters)
            if first is box:
                continue
            order = sorted(first.axes)
            mine = [letters.index(first_letters[a]) for a in order]
            flow.unite(_compact(first.ids, order), _compact(box.ids, mine))
            for axis, slab in first.slabs.items():
                flow.unite(slab, box.slabs[letters.index(first_letters[axis])])


def _collect(
    flow: Flow,
    operands: Sequence[tuple[Boxes, Sequence[int], Letters]],
    holders: Mapping[str, list[tuple[int, int, Box | None]]],
    out: Letters,
    lifts: Lifts,
) -> Boxes:
    def lifted(letters: Iterable[str | None]) -> bool:
        flags = ([box.lifted for _, _, box in holders.get(each or "", ()) if box] for each in letters)
        return any(map(lifts, flags))

    place = {letter: axis for axis, letter in enumerate(out) if letter is not None}
    covered: set[str | None] = set()
    result: list[Box] = []
    for boxes, _, letters in operands:
        for box in boxes:
            span = {letters[a] for a in box.axes}
            if box.slabs and span <= place.keys() and not span & covered:
                moved = box.moved({a: place[letters[a]] for a in box.axes}, len(out))  # type: ignore[index]
                result.append(replace(moved, lifted=lifted(span)))
                covered |= span
    for letter, axis in place.items():
        held = holders.get(letter, [])
        labelled = [(box, at) for _, at, box in held if box is not None]
        if (
            letter in covered or not labelled or len(labelled) < len(held)
        ):  # met an axis that stays: so does this
            continue
        plain = [(box, at) for box, at in labelled if not box.filler] or labelled
        box, at = plain[0]
        filler = box.filler and not box.slabs
        result.append(line(flow.axis(box, at), axis, len(out), filler=filler, lifted=lifted([letter])))
    return tuple(result)


def concatenate(flow: Flow, parts: Sequence[tuple[Boxes, Sequence[int]]], axis: int) -> Boxes:
    """Boxes after `cat` along `axis`; `parts` are pairs of boxes and shape."""
    rank = len(parts[0][1])
    held = [covering(boxes, axis) for boxes, _ in parts]
    letters = [None if a == axis else chr(97 + a) for a in range(rank)]
    spans = {(box.free, box.axes) if box else None for box in held}
    whole = len(spans) == 1 and held[0] is not None and bool(held[0].slabs)
    others = [tuple(b for b in boxes if axis not in b.axes) for boxes, _ in parts]
    if not whole:
        others = [
            rest + tuple(line(flow.axis(box, a), a, rank, lifted=box.lifted) for a in box.axes - {axis})
            if box
            else rest
            for rest, box in zip(others, held, strict=True)
        ]
    joined = join(
        flow,
        [(boxes, shape, letters) for boxes, (_, shape) in zip(others, parts, strict=True)],
        letters,
        lifts=any,
    )
    if all(box is None for box in held):
        return joined
    if whole:
        return (*joined, _cat_rectangles(flow, [box for box in held if box], axis))
    pieces = [
        flow.axis(box, axis) if box else _constant(flow, shape[axis])
        for box, (_, shape) in zip(held, parts, strict=True)
    ]
    lifted = any(box.lifted for box in held if box)
    return (*joined, line(np.concatenate(pieces), axis, rank, lifted=lifted))


def _constant(flow: Flow, size: int) -> IntArray:
    ids = flow.fresh(size)
    flow.freeze(ids, "concatenated with positions that cannot go")
    return ids


def _cat_rectangles(flow: Flow, boxes: Sequence[Box], axis: int) -> Box:
    first = boxes[0]
    for box in boxes[1:]:
        for a in first.slabs.keys() - {axis}:
            flow.unite(first.slabs[a], box.slabs[a])
    slabs = {
        a: np.concatenate([box.slabs[a] for box in boxes]) if a == axis else slab
        for a, slab in first.slabs.items()
    }
    ids, lifted = np.concatenate([box.ids for box in boxes], axis), any(box.lifted for box in boxes)
    result = Box(ids, first.free, slabs, lifted=lifted)
    flow.declare(result, result.slabs)
    return result


def pointwise(flow: Flow, op: Op, inputs: Sequence[Ref]) -> Boxes:
    """Elementwise ops with broadcasting: axes meet from the right."""
    number = next(n for n in op.outputs if n is not None)
    rank = len(flow.tensors[number].shape)
    letters = [chr(97 + a) for a in range(rank)]
    operands = [(flow.of(ref), flow.shape(ref), letters[rank - len(flow.shape(ref)) :]) for ref in inputs]
    kind = zero(op)
    made = join(flow, operands, letters, lifts=_LIFTS[kind])
    needed = {Zero.DIVIDED: inputs[:1], Zero.EVERY: inputs}.get(kind, ())
    return lift(made) if kind is Zero.NEVER or not _cover(flow, needed, made) else made


_LIFTS: Mapping[Zero, Lifts] = {
    Zero.FACTOR: all,
    Zero.DIVIDED: lambda lifted: next(iter(lifted)),
    Zero.EVERY: any,
    Zero.NEVER: any,
}


def _cover(flow: Flow, inputs: Sequence[Ref], made: Boxes) -> bool:
    """Whether each of the inputs has labels wherever the result has: a constant beside them is never zero."""
    axes = {axis - box.ids.ndim for box in made for axis in box.axes}
    return all(axes <= {axis - box.ids.ndim for box in flow.of(ref) for axis in box.axes} for ref in inputs)


def _compact(ids: IntArray, order: Sequence[int]) -> IntArray:
    return np.moveaxis(ids, order, range(len(order))).reshape([ids.shape[a] for a in order])
