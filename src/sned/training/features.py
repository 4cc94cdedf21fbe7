"""What goes on inside a teacher and its student: which tensors to compare, and which of the teacher's channels.

Where the student was cut from the teacher, its plan says which channels those are: no projection is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sned.errors import ModelError, PlanError, close_names
from sned.graph.example import Inputs, describe
from sned.graph.ir import Graph, IntArray
from sned.graph.plan import Plan
from sned.graph.replay import keep_of
from sned.graph.trace import trace_example
from sned.surgery.pytorch import PLAN_ATTRIBUTE, cut, graph_for
from sned.training.handing import Shapes, first, output_of, rows_axis, shapes_of

MOST = 4
"""Layers compared by default in a network whose blocks all have one shape."""


@dataclass(frozen=True, eq=False)
class Match:
    """A module of the student beside one of the teacher.

    Attributes:
        kept: `{axis: indices}` of the teacher's output that the student's still has.
        rows: the axis of inputs in what the student and the teacher return; it is moved to the front.
        channels: the axis of channels then, in both; the others but the first are positions.
    """

    student: str
    teacher: str
    kept: Mapping[int, IntArray] = field(default_factory=dict)
    channels: int = 1
    rows: tuple[int, int] = (0, 0)

    def own(self, output: Any) -> Tensor:
        """What is compared of what the student's module returns, inputs first."""
        return first(output, self.student).movedim(self.rows[0], 0)

    def of(self, output: Any) -> Tensor:
        """What is compared of what the teacher's returns: without the channels that the student lost, inputs first."""
        found = first(output, self.teacher)
        for axis, indices in self.kept.items():
            found = found.index_select(axis, torch.from_numpy(indices).to(found.device))
        return found.movedim(self.rows[1], 0)


def matched(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Callable[[], Inputs],
    layers: Sequence[str | tuple[str, str]] | None = None,
) -> tuple[Match, ...]:
    """Modules of both networks whose outputs can be compared.

    Args:
        student: carries its plans where it was cut.
        teacher: the network that it was cut from, or another.
        inputs: gives an example, for networks without a plan.
        layers: names of modules, or pairs of the student's and the teacher's name; by default the last module of each
            stage, or a few blocks evenly spaced.

    Raises:
        ModelError: a name is not that of a module, or of one whose output cannot be told.
    """
    plans = plans_between(student, teacher)
    graph = graph_for(teacher, plans[0]) if plans else trace_example(teacher, describe(inputs()))
    chosen = list(layers) if layers is not None else default_layers(graph)
    pairs = [(name, name) if isinstance(name, str) else name for name in chosen]
    for model, names in ((student, [s for s, _ in pairs]), (teacher, [t for _, t in pairs])):
        _check_names(model, names)
    kept = _kept(teacher, graph, plans, [name for _, name in pairs])
    mine = shapes_of(student, graph, [name for name, _ in pairs])
    theirs = shapes_of(teacher, graph, [name for _, name in pairs])
    return tuple(_match(s, t, kept[t], mine.get(s, ()), theirs.get(t, ())) for s, t in pairs)


def _match(student: str, teacher: str, kept: Mapping[int, IntArray],
           mine: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> Match:  # fmt: skip
    """Channels are the axis that lost units; else the second of images, and the last of sequences."""
    rows = rows_axis(mine), rows_axis(theirs)
    if kept:
        axis = next(iter(kept))
        channels = axis + 1 if axis < rows[1] else axis
    else:
        channels = 1 if theirs and len(theirs[0]) == 4 else -1
    return Match(student, teacher, kept, channels, rows)


def plans_between(student: nn.Module, teacher: nn.Module) -> tuple[Plan, ...]:
    """The plans that made the student from the teacher, in order; none where it was not cut from it.

    A teacher that was itself cut by the first of the student's plans is taken for what it is.
    """
    plans: tuple[Plan, ...] = getattr(student, PLAN_ATTRIBUTE, ())
    earlier: tuple[Plan, ...] = getattr(teacher, PLAN_ATTRIBUTE, ())
    between = plans[len(earlier) :]
    if not between:
        return ()
    try:
        graph_for(teacher, between[0])
    except (PlanError, ModelError):
        return ()
    return between


def default_layers(graph: Graph) -> list[str]:
    """Modules worth comparing: the last of each run of equal shapes, or some of a single run, evenly spaced."""
    model: nn.Module = graph.model
    runs_itself = {path: module for path, module in model.named_modules() if path and _has_forward(module)}
    containers = [path for path, module in runs_itself.items() if any(True for _ in module.children())]
    leaves = [path for path, module in runs_itself.items() if any(True for _ in module.parameters())]
    shapes = shapes_of(model, graph, list(runs_itself))
    for candidates, rank in ((containers, 3), (leaves, 3), (leaves, 2)):
        found = _handing_on(graph, candidates, rank, shapes)
        runs = [
            [path for path, _ in run]
            for _, run in groupby(found, key=lambda entry: graph.tensors[entry[1]].shape)
        ]
        if len(runs) > 1:
            return [run[-1] for run in runs]
        if runs:
            run = runs[0]
            places = np.linspace(0, len(run) - 1, min(MOST, len(run)) + 1).round().astype(int)[1:]
            return [run[place] for place in dict.fromkeys(places.tolist())]
    raise ModelError("No module of the teacher hands on a tensor to compare. Name modules in `layers`.")


def _has_forward(module: nn.Module) -> bool:
    """Whether it is called, unlike a mere list of modules."""
    return type(module).forward is not nn.Module.forward


def _handing_on(graph: Graph, paths: Sequence[str], rank: int, shapes: Shapes) -> list[tuple[str, int]]:
    """Modules that hand on a tensor of at least `rank` axes (of two: but for the network's own outputs), and its
    number; of those with one and the same tensor the outermost, in the order in which they run."""
    found: dict[int, str] = {}
    own = graph.outputs if rank == 2 else ()
    for path in paths:
        number = output_of(graph, path, shapes)
        if number is not None and number not in own and len(graph.tensors[number].shape) >= rank:
            found.setdefault(number, path)
    return [(found[number], number) for number in sorted(found)]


def _kept(
    teacher: nn.Module, graph: Graph, plans: Sequence[Plan], paths: Sequence[str]
) -> dict[str, dict[int, IntArray]]:
    """What every plan in turn left of what the modules hand on, as indices into the teacher's."""
    kept: dict[str, dict[int, IntArray]] = {path: {} for path in paths}
    model = teacher
    for number, plan in enumerate(plans):
        here = graph if number == 0 else graph_for(model, plan)
        keep = keep_of(here, plan)
        shapes = shapes_of(here.model, here, paths)
        for path in paths:
            tensor = output_of(here, path, shapes)
            if tensor is None:
                continue
            for axis in range(len(here.tensors[tensor].shape)):
                mask = keep.mask(tensor, axis)
                if mask is None or mask.all():
                    continue
                stay = np.flatnonzero(mask)
                kept[path][axis] = kept[path][axis][stay] if axis in kept[path] else stay
        if number + 1 < len(plans):
            model = cut(here.model, here, plan)
    return kept


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    known = [path for path, _ in model.named_modules() if path]
    for name in names:
        if name not in known:
            raise ModelError(f"{type(model).__name__} has no module {name!r}. {close_names(name, known)}")
