"""Look-ups by index: embeddings, gathers, index tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.joins import join
from sned.graph.labels import Box, Boxes, covering, lift, line
from sned.graph.rules.registry import argument, rule


@rule("embedding")
def embedding(flow: Flow, op: Op) -> None:
    """Rows of a table: the vocabulary stays, the width passes on."""
    table, index = op.args[0], op.args[1]
    flow.put(op, _looked_up(flow, flow.of(table), 0, len(flow.shape(index)), "looked up by index"))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(flow: Flow, op: Op) -> None:
    """Sums of rows of a table."""
    flow.put(op, _looked_up(flow, flow.of(op.args[0]), 0, 1, "looked up by index"))


@rule("index_select")
def index_select(flow: Flow, op: Op) -> None:
    """Positions of one axis, picked by a tensor."""
    ref, axis = op.args[0], op.args[1] % len(flow.shape(op.args[0]))
    flow.put(op, _looked_up(flow, flow.of(ref), axis, 1, "picked by an index tensor"))


@rule("gather", "take_along_dim")
def gather(flow: Flow, op: Op) -> None:
    """Positions picked along one axis, which stays; the others meet."""
    flow.put(op, _along_one_axis(flow, op))


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_",
      "index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_",
      "index_fill", "index_fill_")  # fmt: skip
def scatter(flow: Flow, op: Op) -> None:
    """Positions written or added to along one axis, which stays; the others meet. A number may be written instead."""
    boxes, source = _along_one_axis(flow, op), op.args[3]
    tensor = isinstance(source, Ref) and bool(flow.shape(source))
    flow.put(op, boxes if tensor or source == 0 else lift(boxes))


def _along_one_axis(flow: Flow, op: Op) -> Boxes:
    refs = [a for a in op.args if isinstance(a, Ref) and flow.shape(a)]
    rank = len(flow.shape(refs[0]))
    axis = int(argument(op, 1, "dim", 0)) % rank
    letters = [None if a == axis else chr(97 + a) for a in range(rank)]
    for ref in refs:
        _freeze_along(flow, flow.of(ref), [axis], "picked by an index tensor")
    # What an index holds is no value of the result.
    held = {r.id: tuple(replace(box, lifted=False) for box in flow.of(r)) for r in refs[1:2]}
    operands = [
        (held.get(r.id, flow.of(r)), flow.shape(r), letters) for r in refs if len(flow.shape(r)) == rank
    ]
    return join(flow, operands, letters, lifts=any)


@rule("index")
def index(flow: Flow, op: Op) -> None:
    """`x[i, :, j]`: indexed axes stay, the others pass."""
    boxes, rank = flow.of(op.args[0]), len(flow.shape(op.args[0]))
    picked, made, where = _indexed(flow, op.args[1], rank)
    _freeze_along(flow, boxes, picked, "picked by an index tensor")
    flow.put(op, _without(flow, boxes, set(picked), where, len(where) + made))


@rule("index_put", "index_put_")
def index_put(flow: Flow, op: Op) -> None:
    """`x[i, :, j] = y`: indexed axes stay, and what is written along them; the others meet."""
    ref, values = op.args[0], op.args[2]
    rank, of_values = len(flow.shape(ref)), len(flow.shape(values))
    picked, made, where = _indexed(flow, op.args[1], rank)
    letters = [None if axis in picked else chr(97 + axis) for axis in range(rank)]
    written: list[str | None] = [None] * (len(where) + made)
    for axis, place in where.items():
        written[place] = letters[axis]
    written = written[len(written) - of_values :]
    fixed = [axis for axis, letter in enumerate(written) if letter is None]
    _freeze_along(flow, flow.of(ref), picked, "written by index")
    _freeze_along(flow, flow.of(values), fixed, "written by index")
    operands = [(flow.of(ref), flow.shape(ref), letters), (flow.of(values), flow.shape(values), written)]
    boxes = join(flow, operands, letters, lifts=any)
    labelled = {letter for axis, letter in enumerate(written) if covering(flow.of(values), axis)}
    flow.put(op, boxes if {letters[axis] for box in boxes for axis in box.axes} <= labelled else lift(boxes))


@rule("masked_scatter", "slice_scatter", "select_scatter", "copy")
def written(flow: Flow, op: Op) -> None:
    """Values written at places: all that takes part stays."""
    for ref in [a for a in op.args if isinstance(a, Ref)]:
        flow.freeze_boxes(flow.of(ref), "written by index")
    flow.put(op, flow.of(op.args[0]))


@rule("_pack_padded_sequence")
def packed(flow: Flow, op: Op) -> None:
    """The steps of all samples on one axis, as their lengths ask: both axes stay, what lies behind them passes."""
    ref, rank = op.args[0], len(flow.shape(op.args[0]))
    _freeze_along(flow, flow.of(ref), [0, 1], "packed by lengths")
    flow.put(op, _without(flow, flow.of(ref), {0, 1}, {a: a - 1 for a in range(2, rank)}, rank - 1))


def _indexed(flow: Flow, indices: Sequence[Ref | None], rank: int) -> tuple[list[int], int, dict[int, int]]:
    """The axes that are indexed, how many axes their indices make, and where the other axes stand beside these, by
    PyTorch's rule. A mask takes as many axes as it has, and makes one."""
    picked: list[int] = []
    made = axis = 0
    for given in indices:
        mask = given is not None and flow.tensors[given.id].dtype == "bool"
        width = len(flow.shape(given)) if given is not None and mask else 1
        if given is not None:
            picked += range(axis, axis + width)
            made = max(made, 1 if mask else len(flow.shape(given)))
        axis += width
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    place = picked[0] if adjacent else 0
    rest = [axis for axis in range(rank) if axis not in picked]
    return picked, made, {axis: n if n < place else n + made for n, axis in enumerate(rest)}


def _freeze_along(flow: Flow, boxes: Boxes, axes: Iterable[int], reason: str) -> None:
    """What lies along these axes stays."""
    for axis in axes:
        if (box := covering(boxes, axis)) is not None:
            flow.freeze(flow.axis(box, axis), reason)


def _looked_up(flow: Flow, boxes: Boxes, axis: int, made: int, reason: str) -> Boxes:
    """Boxes after axis `axis` is replaced by `made` axes of an index."""
    _freeze_along(flow, boxes, [axis], reason)
    rank = boxes[0].ids.ndim if boxes else 1
    where = {a: a if a < axis else a + made - 1 for a in range(rank)}
    return _without(flow, boxes, {axis}, where, rank + made - 1)


def _without(flow: Flow, boxes: Boxes, lost: set[int], where: dict[int, int], rank: int) -> Boxes:
    """Boxes moved, without those that vary along a lost axis (their other axes keep one label an index)."""
    result: list[Box] = []
    for box in boxes:
        if not box.axes & lost:
            result.append(box.moved(where, rank))
            continue
        for axis in box.axes - lost:
            labels = flow.axis(box, axis)
            result.append(line(labels, where[axis], rank, lifted=box.lifted))
    return tuple(result)
