"""Look-ups by index: embeddings, gathers, index tables."""

from __future__ import annotations

from sned.graph.flow import Flow
from sned.graph.ir import Op, Ref
from sned.graph.joins import join
from sned.graph.labels import Box, Boxes, covering, line
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


@rule(
    "gather",
    "take_along_dim",
    "scatter",
    "scatter_",
    "scatter_add",
    "scatter_add_",
    "index_fill",
    "index_add",
)
def gather(flow: Flow, op: Op) -> None:
    """Positions picked or written along one axis, which stays; the others meet."""
    refs = [a for a in op.args if isinstance(a, Ref) and flow.shape(a)]
    rank = len(flow.shape(refs[0]))
    axis = int(argument(op, 1, "dim", 0)) % rank
    letters = [None if a == axis else chr(97 + a) for a in range(rank)]
    for ref in refs:
        if (box := covering(flow.of(ref), axis)) is not None:
            flow.freeze(flow.axis(box, axis), "picked by an index tensor")
    operands = [(flow.of(r), flow.shape(r), letters) for r in refs if len(flow.shape(r)) == rank]
    flow.put(op, join(flow, operands, letters))


@rule("index")
def index(flow: Flow, op: Op) -> None:
    """`x[i, :, j]`: indexed axes stay, the others pass; where the new axes stand follows PyTorch's rule."""
    ref, indices = op.args[0], list(op.args[1])
    rank = len(flow.shape(ref))
    picked = [axis for axis, i in enumerate(indices) if i is not None]
    bools = [flow.tensors[indices[a].id].dtype == "bool" for a in picked]
    if any(bools):
        flow.freeze_boxes(flow.of(ref), "picked by a mask")
        return
    made = max(len(flow.shape(indices[a])) for a in picked)
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    place = picked[0] if adjacent else 0
    boxes = flow.of(ref)
    for axis in picked:
        if (box := covering(boxes, axis)) is not None:
            flow.freeze(flow.axis(box, axis), "picked by an index tensor")
    rest = [axis for axis in range(rank) if axis not in picked]
    where = {}
    for number, axis in enumerate(rest):
        where[axis] = number if number < place else number + made
    flow.put(op, _without(flow, boxes, set(picked), where, len(rest) + made))


@rule("index_put", "index_put_", "masked_scatter", "slice_scatter", "select_scatter", "copy")
def written(flow: Flow, op: Op) -> None:
    """Values written at places: all that takes part stays, except along axes that nobody indexes."""
    for ref in [a for a in op.args if isinstance(a, Ref)]:
        flow.freeze_boxes(flow.of(ref), "written by index")
    flow.put(op, flow.of(op.args[0]))


def _looked_up(flow: Flow, boxes: Boxes, axis: int, made: int, reason: str) -> Boxes:
    """Boxes after axis `axis` is replaced by `made` axes of an index."""
    if (box := covering(boxes, axis)) is not None:
        flow.freeze(flow.axis(box, axis), reason)
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
