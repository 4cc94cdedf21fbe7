"""Views, permutations, splits, concatenations: ops that move positions and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sned.graph.flow import Flow
from sned.graph.ir import Op
from sned.graph.joins import concatenate, join
from sned.graph.labels import Box, covering
from sned.graph.rules.registry import Arguments, argument, resize, rule
from sned.graph.views import pick, reshape, take

if TYPE_CHECKING:
    from sned.graph.sizes import Sizes


def _out_shape(flow: Flow, op: Op, output: int = 0) -> tuple[int, ...]:
    number = op.outputs[output]
    assert number is not None
    return flow.tensors[number].shape


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "flatten", "unflatten",
      "_reshape_alias", "_reshape_copy")  # fmt: skip
def view(flow: Flow, op: Op) -> None:
    """Any row-major change of shape."""
    ref = op.args[0]
    flow.put(op, reshape(flow, flow.of(ref), flow.shape(ref), _out_shape(flow, op)))


@resize("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy")
def view_size(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """The target shape follows the axes that it makes."""
    return (args[0], sizes.scaled(op, args[1]))


@rule("permute", "transpose", "transpose_", "t", "t_", "movedim", "swapaxes", "numpy_T")
def permute(flow: Flow, op: Op) -> None:
    """Axes change places."""
    ref = op.args[0]
    rank = len(flow.shape(ref))
    order = list(range(rank))
    if op.name in ("permute",):
        order = [axis % rank for axis in op.args[1]]
    elif rank > 1:
        a, b = (op.args[1] % rank, op.args[2] % rank) if len(op.args) > 2 else (0, 1)
        order[a], order[b] = order[b], order[a]
    where = {old: new for new, old in enumerate(order)}
    flow.put(op, tuple(box.moved(where, rank) for box in flow.of(ref)))


@rule("expand")
def expand(flow: Flow, op: Op) -> None:
    """Axes of size 1 take any size: values are the same all along them."""
    ref = op.args[0]
    old, new = flow.shape(ref), _out_shape(flow, op)
    shift = len(new) - len(old)
    moved = tuple(box.moved({a: a + shift for a in box.axes}, len(new)) for box in flow.of(ref))
    grown = [a for a, size in enumerate(new) if size > 1 and (a < shift or old[a - shift] == 1)]
    flow.put(op, moved + flow.filler(new, grown))


@resize("expand")
def expand_size(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """The size follows the axes that it makes."""
    return (args[0], sizes.scaled(op, args[1]), *args[2:])


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "tensor_split")
def split(flow: Flow, op: Op) -> None:
    """Pieces along one axis; the pieces keep their proportion, unless the code gives the size of each."""
    ref = op.args[0]
    shape = flow.shape(ref)
    axis = int(argument(op, 2, "dim", 0)) % len(shape)
    ends = np.cumsum([0, *(_out_shape(flow, op, output)[axis] for output in range(len(op.outputs)))])
    pieces = [slice(int(start), int(stop), 1) for start, stop in pairwise(ends)]
    beside = None
    if op.name.endswith("split_with_sizes"):
        beside = flow.origins.beside(op, dict(enumerate(pieces)), list(op.args[1]))
    for output, piece in enumerate(pieces):
        flow.put(op, take(flow, flow.of(ref), axis, piece, shape[axis], beside), output)


@resize("split", "unsafe_split")
def split_size(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """Pieces of one size: the first output tells it."""
    axis = int(args[2] if len(args) > 2 else 0) % len(sizes.old(args[0]))
    first = op.outputs[0]
    assert first is not None
    kept, old = sizes.fraction(first, axis)
    return (args[0], args[1] * kept // max(old, 1), *args[2:])


@resize("split_with_sizes", "unsafe_split_with_sizes")
def split_sizes(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """Pieces of given sizes: each output tells its own."""
    axis = int(args[2] if len(args) > 2 else 0) % len(sizes.old(args[0]))
    pieces = []
    for size, number in zip(args[1], op.outputs, strict=True):
        assert number is not None
        kept, old = sizes.fraction(number, axis)
        pieces.append(size * kept // max(old, 1))
    return (args[0], tuple(pieces), *args[2:])


@rule("unbind")
def unbind(flow: Flow, op: Op) -> None:
    """One tensor for each index of an axis, which therefore stays."""
    ref = op.args[0]
    axis = int(argument(op, 1, "dim", 0)) % len(flow.shape(ref))
    for output in range(len(op.outputs)):
        flow.put(op, pick(flow, flow.of(ref), axis, output), output)


@rule("select")
def select(flow: Flow, op: Op) -> None:
    """One index of an axis, which cannot go."""
    ref, given, index = op.args[0], op.args[1], op.args[2]
    shape = flow.shape(ref)
    axis = given % len(shape)
    number = index if isinstance(index, int) else 0
    flow.put(op, pick(flow, flow.of(ref), axis, number % shape[axis]))


@resize("select")
def select_index(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """The index counts what remains before it; from the end, what remains after it."""
    ref, given, index = args[0], args[1], args[2]
    axis = given % len(sizes.old(ref))
    old = sizes.old(ref)[axis]
    if index < 0:
        return (ref, given, -sizes.kept(ref.id, axis, old, old + index))
    return (ref, given, sizes.kept(ref.id, axis, old, 0, index))


@rule("slice", "narrow")
def slice_(flow: Flow, op: Op) -> None:
    """A range of an axis."""
    ref = op.args[0]
    shape = flow.shape(ref)
    axis = int(argument(op, 1, "dim", 0)) % len(shape)
    size, index = shape[axis], _range(op, shape[axis])
    cuts = [n for n in op.args[2:4] if isinstance(n, int) and n and -size < n < size]
    kept = {place: slice(0, n) if n > 0 else slice(n, None) for place, n in enumerate(cuts)}
    beside = flow.origins.beside(op, kept, cuts) if op.name == "slice" else None
    flow.put(op, take(flow, flow.of(ref), axis, index, size, beside))


def _range(op: Op, size: int) -> slice:
    if op.name == "narrow":
        return slice(op.args[2], op.args[2] + op.args[3], 1)
    held = [argument(op, 2, "start"), argument(op, 3, "end"), argument(op, 4, "step", 1)]
    start, end, step = (v if isinstance(v, int) or v is None else v(2) for v in held)
    return slice(*slice(start, end, step).indices(size))


@resize("slice")
def slice_bounds(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """Start and end count what remains before them; a stride begins at the same place in what remains."""
    ref = args[0]
    axis = (args[1] if len(args) > 1 else 0) % len(sizes.old(ref))
    if sizes.untouched(ref.id, axis) or len(args) < 3:
        return args
    old = sizes.old(ref)[axis]
    start, end, step = slice(*args[2:5]).indices(old)
    step_args = (args[4],) if len(args) > 4 else ()
    phase = start % step  # the positions of one stride leave together
    return (
        ref,
        args[1],
        sizes.kept(ref.id, axis, old, 0, start - phase) + phase,
        sizes.kept(ref.id, axis, old, 0, end),
        *step_args,
    )


@rule("cat", "concat", "concatenate", "hstack")
def cat(flow: Flow, op: Op) -> None:
    """Tensors one after the other along an axis; legacy empty tensors are skipped."""
    parts = [ref for ref in op.args[0] if flow.shape(ref) != (0,)]
    axis = int(argument(op, 1, "dim", 0)) % len(flow.shape(parts[0]))
    flow.put(op, concatenate(flow, [(flow.of(ref), flow.shape(ref)) for ref in parts], axis))


@rule("stack")
def stack(flow: Flow, op: Op) -> None:
    """Tensors side by side on a new axis."""
    refs = op.args[0]
    rank = len(flow.shape(refs[0]))
    axis = int(argument(op, 1, "dim", 0)) % (rank + 1)
    letters = [chr(97 + a) for a in range(rank)]
    out: list[str | None] = [*letters[:axis], None, *letters[axis:]]
    flow.put(op, join(flow, [(flow.of(ref), flow.shape(ref), letters) for ref in refs], out))


@rule("diagonal", "diagonal_copy")
def diagonal(flow: Flow, op: Op) -> None:
    """Two axes become one, the last, along which both meet; beside the main diagonal they stay."""
    ref, rank = op.args[0], len(flow.shape(op.args[0]))
    pair = {int(argument(op, 2, "dim1", 0)) % rank, int(argument(op, 3, "dim2", 1)) % rank}
    if argument(op, 1, "offset", 0):
        for box in flow.of(ref):
            for axis in box.axes & pair:
                flow.freeze(flow.axis(box, axis), "what lies beside a diagonal depends on the position")
    letters = ["z" if a in pair else chr(97 + a) for a in range(rank)]
    flow.put(
        op, join(flow, [(flow.of(ref), flow.shape(ref), letters)], [*(c for c in letters if c != "z"), "z"])
    )


@rule("view_as_complex")
def pairs_as_complex(flow: Flow, op: Op) -> None:
    """The last axis holds a real and an imaginary part, which stay; the others pass."""
    boxes, last = flow.of(op.args[0]), len(flow.shape(op.args[0])) - 1
    for part in (0, 1):
        moved = pick(flow, boxes, last, part)
    flow.put(op, moved)


@rule("view_as_real")
def complex_as_pairs(flow: Flow, op: Op) -> None:
    """A new last axis holds the real and the imaginary part."""
    rank = len(flow.shape(op.args[0]))
    same = {axis: axis for axis in range(rank)}
    flow.put(op, tuple(box.moved(same, rank + 1) for box in flow.of(op.args[0])))


@rule("as_strided_", "as_strided")
def as_strided(flow: Flow, op: Op) -> None:
    """Same shape, other strides (what pooling to one pixel does to keep channels last); anything else stays."""
    ref = op.args[0]
    if _out_shape(flow, op) == flow.shape(ref):
        flow.put(op, flow.of(ref))
    else:
        flow.freeze_boxes(flow.of(ref), "as_strided reads the memory underneath")


@resize("as_strided_", "as_strided")
def strides(sizes: Sizes, op: Op, args: Arguments) -> Arguments:
    """Strides of the new shape, the axes in the same order of nearness; windows into the memory underneath stay."""
    made = op.outputs[0]
    if made is None or sizes.old(args[0]) != sizes.recorded(made):
        return args
    old, new = args[1], sizes.scaled(op, args[1])
    near = sorted((axis for axis, size in enumerate(old) if size > 1), key=lambda axis: args[2][axis])
    steps, step = [1] * len(new), 1
    for axis in near:
        steps[axis], step = step, step * new[axis]
    return (args[0], new, tuple(steps), *args[3:])


@rule("roll")
def roll(flow: Flow, op: Op) -> None:
    """Positions move around: the axes rolled stay, the others pass."""
    ref = op.args[0]
    rank = len(flow.shape(ref))
    moved = {axis % rank for axis in argument(op, 2, "dims", ())} or set(range(rank))
    for axis in moved:
        if (box := covering(flow.of(ref), axis)) is not None:
            flow.freeze(flow.axis(box, axis), "rolled along this axis")
    flow.put(op, flow.of(ref))


@rule("flip")
def flip(flow: Flow, op: Op) -> None:
    """Positions in the opposite order; what is left of them stands in the opposite order too."""
    ref = op.args[0]
    rank = len(flow.shape(ref))
    axes = {axis % rank for axis in op.args[1]}
    flow.put(
        op,
        tuple(
            replace(
                box,
                ids=np.flip(box.ids, sorted(axes & box.axes)),
                slabs={a: slab[::-1] if a in axes else slab for a, slab in box.slabs.items()},
            )
            for box in flow.of(ref)
        ),
    )


@rule("repeat")
def repeat(flow: Flow, op: Op) -> None:
    """Copies one after the other along axes."""
    ref = op.args[0]
    old, new = flow.shape(ref), _out_shape(flow, op)
    shift = len(new) - len(old)
    times = [new[a + shift] // size for a, size in enumerate(old)]
    repeated = tuple(
        _repeated(box, times).moved({a: a + shift for a in box.axes}, len(new)) for box in flow.of(ref)
    )
    flow.put(op, repeated)


def _repeated(box: Box, times: Sequence[int]) -> Box:
    counts = [n if a in box.axes else 1 for a, n in enumerate(times)]
    slabs = {a: np.tile(slab, times[a]) for a, slab in box.slabs.items()}
    return replace(box, ids=np.tile(box.ids, counts), slabs=slabs)
