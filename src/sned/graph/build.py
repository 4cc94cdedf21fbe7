"""From recordings to a graph: labels flow through the ops, and what they meet is solved for the groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from sned.graph.coupling import Coupling, Position
from sned.graph.flow import Flow
from sned.graph.formulas import Attribute, Formula, Source, TensorAxis
from sned.graph.ir import Graph, IntArray, Op
from sned.graph.labels import covering, line
from sned.graph.modules import modules_of
from sned.graph.origins import Origins
from sned.graph.provenance import Use
from sned.graph.reached import mark_reached
from sned.graph.recording import BATCHES, Recorded, Recording
from sned.graph.rescale import Lost, Rescale, Upstream, rescales
from sned.graph.rules import RULES
from sned.graph.sizes import filled

FIXED = 3
"""The level of `fixed` at which nothing at an op may change."""

Labels = dict[str, dict[int, IntArray]]
"""The labels of every axis of every parameter."""

Given = Mapping[Source, Source]
"""Attributes, and an axis that has just the size that each of them gives."""


def build(
    recorded: Recorded,
    fixed: Mapping[int, int] | None = None,
    staying: Mapping[tuple[str, int], str] | None = None,
) -> Graph:
    """Let labels flow through the recordings and solve for the groups.

    `fixed` names ops, by number, that may not change the size of what they make, an axis that a view leaves open aside
    (1), nor that one and those of what goes in (2), not even by a slab that leaves (`FIXED`); `staying` names axes of
    parameters that stay, and the reason.
    """
    main, model = recorded.main, recorded.model
    labels: Labels = {}
    flow = Flow(main.tensors, main.read())
    given = _through(flow, main, labels, fixed or {})
    training, given_there = None, given
    if recorded.trained is not None:
        training = Flow(recorded.trained.tensors, recorded.trained.read(), flow.relations)
        given_there = _through(training, recorded.trained, labels, {})
    for (name, axis), reason in (staying or {}).items():
        flow.freeze(labels[name][axis], reason)
    positions = [
        Position(name, axis, ids, axis == _output_axis(recorded, name))
        for name, axes in labels.items()
        for axis, ids in axes.items()
    ]
    made_up = tuple(_make_up(flow, main, positions, given))
    if training is not None and recorded.trained is not None:
        _hold_others(training, recorded.trained, positions, given_there, made_up)
    names, aliases = _names(model)
    read = _read(main) | (_read(recorded.trained) if recorded.trained is not None else set())
    for name in labels.keys() - read:
        for ids in labels[name].values():
            flow.freeze(ids, "asked for its shape, but never read")
    unread = tuple(name for name in names if name not in read and name not in aliases)
    tensors, parameters = list(main.tensors), dict(main.parameters)
    if recorded.trained is not None:
        for name, other in recorded.trained.parameters.items():
            if name in parameters:
                continue
            tensor = recorded.trained.tensors[other]
            number = parameters[name] = len(tensors)
            tensors.append(tensor)
            flow.boxes[number] = tuple(
                line(ids, axis, len(tensor.shape)) for axis, ids in labels.get(name, {}).items()
            )
    _spare(flow, positions, [names[name] for name in unread])
    order = {name: i for i, name in enumerate(labels)}
    reached = np.zeros(flow.relations.count, bool)
    mark_reached(reached, main, flow.boxes)
    if training is not None and recorded.trained is not None:
        mark_reached(reached, recorded.trained, training.boxes)
    return Graph(
        ops=tuple(main.ops),
        tensors=tuple(tensors),
        parameters=parameters,
        trainable=frozenset(name for name, _ in model.named_parameters(remove_duplicate=False)),
        aliases=aliases,
        unread=unread,
        inputs=main.inputs,
        outputs=main.outputs,
        constants=main.constants,
        batch=BATCHES[0] if recorded.batched else recorded.example.batch,
        batched=recorded.batched,
        example=recorded.example,
        coupling=Coupling(flow.relations, positions, flow.boxes, order, reached),
        uses=tuple(main.uses),
        rescales=made_up,
        model=model,
        recorded=recorded,
        rows=main.rows,
    )


def _through(flow: Flow, recording: Recording, labels: Labels, fixed: Mapping[int, int]) -> Given:
    """Visit the ops of one recording; parameters that were labelled by an earlier one keep their labels."""
    for name, number in recording.parameters.items():
        tensor = recording.tensors[number]
        if not tensor.dtype.startswith(("float", "bfloat", "complex")):
            continue
        if name not in labels:
            labels[name] = flow.parameter(number)
        else:
            flow.boxes[number] = tuple(
                line(ids, axis, len(tensor.shape)) for axis, ids in labels[name].items()
            )
    flow.origins = Origins(recording.ops, recording.uses)
    for op in recording.ops:
        flow.op = op
        plain = replace(op, args=filled(op.args, BATCHES[0])) if op.grows else op
        RULES.get(op.name, RULES["pointwise"] if op.pointwise else RULES["unknown"])(flow, plain)
        if op.index in fixed:
            _fix(flow, op, fixed[op.index])
    for use in recording.uses:
        flow.op = recording.ops[use.last_op - 1] if use.last_op <= len(recording.ops) else None
        if use.at is None:
            _link(flow, use)
    given = _link_attributes(flow, recording.ops, recording.uses)
    flow.op = None
    for number in recording.outputs:
        flow.freeze_boxes(flow.boxes.get(number, ()), "output of the model")
    return given


def _output_axis(recorded: Recorded, name: str) -> int:
    """The axis of a parameter that is of what its layer makes."""
    if not recorded.outputs_last:
        return 0
    recording = next(r for r in (recorded.main, recorded.trained) if r is not None and name in r.parameters)
    return len(recording.tensors[recording.parameters[name]].shape) - 1


def _read(recording: Recording) -> set[str]:
    """The parameters that an op reads; a pass may ask for the shape of others."""
    read = recording.read()
    return {name for name, number in recording.parameters.items() if number in read}


def _names(model: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of every tensor of the model by name, and the first name of each one that is tied."""
    first: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    aliases: dict[str, str] = {}
    for path, module in modules_of(model):
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{path}.{leaf}" if path else leaf
                shapes[name] = tuple(tensor.shape)
                if (known := first.setdefault(id(tensor), name)) != name:
                    aliases[name] = known
    return shapes, aliases


def _spare(flow: Flow, positions: Sequence[Position], unread: Sequence[tuple[int, ...]]) -> None:
    """Matrices that no pass reads may belong to a stream that passes do read: whatever has their size stays."""
    sizes = {size for shape in unread if sum(n > 1 for n in shape) > 1 for size in shape if size > 1}
    for position in positions:
        if position.labels.size in sizes:
            flow.block(position.labels, "a parameter of this size is never read, so it cannot be cut along")


def _fix(flow: Flow, op: Op, level: int) -> None:
    """What changes the shape of an op's outputs (and inputs) stays; see `build`."""
    reason = "its size is a number in the code that no attribute holds"
    for number in (*op.outputs, *(op.inputs if level > 1 else ())):
        boxes = flow.boxes.get(number, ()) if number is not None else ()
        if level >= FIXED:
            flow.freeze_boxes(boxes, reason)
            continue
        for box in boxes:
            for axis in box.axes:
                if level > 1 or axis not in _left_open(op):
                    flow.block(flow.axis(box, axis), reason)


def _left_open(op: Op) -> set[int]:
    """The axis whose size a view takes from what the others leave: beside numbers in the code that one may change."""
    shape = op.args[1] if op.name in ("view", "reshape", "_unsafe_view") else ()
    return {axis for axis, size in enumerate(shape) if size == -1}


def _link(flow: Flow, use: Use) -> None:
    """A size in a shape that was taken from an axis of another tensor: both must keep their proportion."""
    if use.from_end is None or flow.op is None or use.equals is not None:
        return
    made = next((n for n in flow.op.outputs if n is not None), None)
    sources = [s for s in use.formula.sources if isinstance(s, TensorAxis)]
    if made is None or len(sources) != 1 or use.from_end > len(flow.tensors[made].shape):
        return
    if len(use.formula.sources) > 1 and not _changes(flow, sources[0]):
        return  # the batch times an attribute
    axis = len(flow.tensors[made].shape) - use.from_end
    if flow.tensors[made].shape[axis] == use.value > 1:
        flow.link((sources[0].tensor, sources[0].axis), (made, axis))


def _link_attributes(flow: Flow, ops: Sequence[Op], uses: Sequence[Use]) -> Given:
    """One attribute, or one number that some give, that is the size of several axes: they keep their proportion.

    What a width is divided by to give another size (`C // num_heads`) stays: the two sizes are linked already.
    """
    divided = [
        (use, _is_product(flow, ops, use)) for use in uses if use.from_end is not None and _divides(flow, use)
    ]
    follows = {source for use, product in divided if product for source in use.formula.sources}
    divisors = {source for use, _ in divided for source in use.formula.sources} - follows
    first: dict[Formula, tuple[int, int]] = {}
    given: dict[Source, Source] = {}
    for use in uses:
        sources = use.formula.sources
        made_nothing = use.last_op == use.first_op and use.at is None
        if made_nothing or not all(isinstance(source, Attribute) for source in sources):
            continue
        op = _shaped(ops, use)
        made = _made(flow, op, use)
        if made is None or not flow.tensors[made[0]].shape[made[1]] == use.value > 1:
            continue
        flow.op = op
        formula = use.formula
        if len(sources) == 1 and formula.evaluate(dict.fromkeys(sources, use.value)) == use.value:
            (source,) = sources
            formula = Formula(sources)
            given.setdefault(source, TensorAxis(*made))
            if source in divisors:
                _stay(flow, made, DIVIDES)
        before = first.setdefault(formula, made)
        if before != made:
            flow.link(before, made)
    _link_multiples(flow, uses, given)
    return given


def _link_multiples(flow: Flow, uses: Sequence[Use], given: Given) -> None:
    """Axes of parameters that a configuration makes some times as long as a number in it or as an axis, or a part of it
    (`4 * width`, `width // heads`), keep their proportion to that axis, or to the first axis of this size, or to the
    first of them, which loses whole times; what the number is divided by stays, and so does what is rounded."""
    base = {
        source: (axis.tensor, axis.axis) for source, axis in given.items() if isinstance(axis, TensorAxis)
    }
    flow.op = None
    for use in uses:
        if use.at is None:
            continue
        alone = len(use.formula.sources) == 1
        for source in use.formula.sources:
            if isinstance(source, Attribute) and not use.formula.operation:
                continue  # linked already
            if _proportional(use, source):
                axis = (source.tensor, source.axis) if isinstance(source, TensorAxis) else None
                before = axis or base.setdefault(source, use.at)
                if before != use.at:
                    flow.link(before, use.at)
                elif alone and (box := covering(flow.boxes.get(before[0], ()), before[1])) is not None:
                    flow.alike(box, _whole(use, source))
            elif alone and not _follows(use, source):
                _stay(flow, use.at, "the code rounds this size")
            elif not alone and source in base:
                _stay(flow, base[source], DIVIDES)


DIVIDES = "the code divides a width by this size"


def _stay(flow: Flow, at: tuple[int, int], reason: str) -> None:
    """Keep an axis (tensor, axis), where it has labels."""
    tensor, axis = at
    box = covering(flow.boxes.get(tensor, ()), axis)
    if box is not None:
        flow.block(flow.axis(box, axis), reason)


def _proportional(use: Use, source: Source) -> bool:
    """Whether a number grows as one of its sources does."""
    old, parts = use.formula.old(source), _whole(use, source)
    steps = (parts + 1, 2 * parts, 3 * parts)  # one more tells what is rounded, to eights, say
    return all(use.formula.evaluate({source: old * n // parts}) == use.value * n // parts for n in steps)


def _whole(use: Use, source: Source) -> int:
    """How many steps there are to a number and to one of its sources, if they keep their proportion."""
    return math.gcd(use.formula.old(source), use.value)


def _follows(use: Use, source: Source) -> bool:
    """Whether a number grows by one where one of its sources does."""
    return bool(use.formula.evaluate({source: use.formula.old(source) + 1}) == use.value + 1)


def _divides(flow: Flow, use: Use) -> bool:
    """Whether a number was worked out from one axis, which may change, and from attributes."""
    axes = [source for source in use.formula.sources if isinstance(source, TensorAxis)]
    return len(axes) == 1 < len(use.formula.sources) and _changes(flow, axes[0])


def _changes(flow: Flow, source: TensorAxis) -> bool:
    """Whether an axis has labels; that of the batch has none."""
    return covering(flow.boxes.get(source.tensor, ()), source.axis) is not None


def _is_product(flow: Flow, ops: Sequence[Op], use: Use) -> bool:
    """Whether the axis that was divided is the very one that a view takes apart, so that it follows the divisor."""
    (source,) = (source for source in use.formula.sources if isinstance(source, TensorAxis))
    made = _made(flow, ops[use.last_op - 1], use)
    there = covering(flow.boxes.get(made[0], ()), made[1]) if made else None
    here = covering(flow.boxes.get(source.tensor, ()), source.axis)
    return (
        here is not None and there is not None and np.array_equal(np.unique(here.ids), np.unique(there.ids))
    )


def _shaped(ops: Sequence[Op], use: Use) -> Op:
    """The op of a call that a number of it is for: the slice that ends there, else the last op."""
    called = ops[use.first_op : use.last_op] or [ops[use.last_op - 1]]
    return next((op for op in called if op.name == "slice" and op.args[3:4] == (use.value,)), called[-1])


def _gives_first(op: Op, number: int) -> bool:
    """Whether a number is the size of the first thing that an op makes: of all its pieces, or of what it takes from the
    front."""
    if op.name in ("split", "unsafe_split"):
        return len(op.args) > 2 and bool(op.args[1] == number)
    return op.name == "slice" and tuple(op.args[2:4]) == (0, number)


def _made(flow: Flow, op: Op, use: Use) -> tuple[int, int] | None:
    """The axis (tensor, axis) whose size a number gives: one of a shape, a piece of a split, or what a slice takes from
    the front."""
    if use.at is not None:
        return use.at
    if _gives_first(op, use.value) and op.outputs[0] is not None:
        return op.outputs[0], int(op.args[2 if "split" in op.name else 1])
    if use.from_end is not None:
        number = next((n for n in op.outputs if n is not None), None)
        if number is None or use.from_end > len(flow.tensors[number].shape):
            return None
        return number, len(flow.tensors[number].shape) - use.from_end
    if (
        op.name in ("split_with_sizes", "unsafe_split_with_sizes")
        and use.given[: len(op.outputs)] == op.args[1]
    ):
        piece = op.outputs[use.place] if use.place < len(op.outputs) else None
        axis = int(op.args[2]) if len(op.args) > 2 else 0
        return None if piece is None else (piece, axis % len(flow.tensors[piece].shape))
    return None


def _make_up(
    flow: Flow, recording: Recording, positions: Sequence[Position], given: Given
) -> Iterator[Rescale]:
    """Weights that make up for factors that follow from sizes; where there are none, the size stays."""
    for found in _rescales(flow, recording, positions, given) if recording.scales else ():
        if isinstance(found, Rescale):
            yield found
        else:
            flow.op = found.op
            _hold_sizes(flow, recording, found.formula, "the code derives a factor from this size")
    flow.op = None
    for formula in recording.leaks:
        _hold_sizes(flow, recording, formula, "the code makes a tensor that holds this size")


def _hold_others(
    flow: Flow,
    recording: Recording,
    positions: Sequence[Position],
    given: Given,
    made_up: Sequence[Rescale],
) -> None:
    """Sizes that training alone derives factors from stay: weights make up for what evaluation asks for."""
    known = {rescale.key for rescale in made_up}
    for found in _rescales(flow, recording, positions, given) if recording.scales else ():
        if isinstance(found, Lost) or found.key not in known:
            _hold_sizes(
                flow, recording, found.formula, "the code derives a factor from this size in training"
            )
    for formula in recording.leaks:
        _hold_sizes(flow, recording, formula, "the code makes a tensor that holds this size in training")


def _rescales(
    flow: Flow, recording: Recording, positions: Sequence[Position], given: Given
) -> Iterator[Rescale | Lost]:
    upstream = Upstream(
        recording.ops,
        {number: name for name, number in recording.parameters.items()},
        {(p.parameter, p.axis): int(p.labels[0]) for p in positions},
        [tensor.shape for tensor in recording.tensors],
        flow.boxes,
        {scale.tensor for scale in recording.scales if scale.tensor is not None},
    )
    scales = [replace(scale, formula=scale.formula.over(given)) for scale in recording.scales]
    yield from rescales(recording.ops, scales, upstream)


def _hold_sizes(flow: Flow, recording: Recording, formula: Formula, reason: str) -> None:
    """The axes that a number was taken from stay, and those of which an attribute that it was taken from tells."""
    sources = [source for source in formula.sources if isinstance(source, TensorAxis)]
    axes, attributes = [(s.tensor, s.axis) for s in sources], formula.sources.difference(sources)
    for use in recording.uses if attributes else ():
        if attributes & use.formula.sources and (use.at is not None or use.first_op < use.last_op):
            made = _made(flow, _shaped(recording.ops, use), use)
            axes += [] if made is None else [made]
    for at in axes:
        _stay(flow, at, reason)
