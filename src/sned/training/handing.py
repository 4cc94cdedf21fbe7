"""What modules hand on: the tensors themselves, their places in the graph, and their axis of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sned.errors import ModelError
from sned.graph.example import tensors_in
from sned.graph.ir import Graph, Rows
from sned.graph.recording import BATCHES, rows_in_step
from sned.graph.trace import device_of, mode_of, state_of
from sned.graph.untouched import Untouched
from sned.surgery.home import moved_inputs
from sned.training.memory import is_memory_error

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""What each module returns first, by path: its shape at each of the traced batch sizes."""


@contextmanager
def captured(
    model: nn.Module, paths: Sequence[str], look: Callable[[Any], Any] = lambda output: output
) -> Iterator[dict[str, Any]]:
    """Within the block, what the modules of those paths return (`look` at it), by path; of several calls, the last."""
    found: dict[str, Any] = {}

    def note(path: str, _: nn.Module, __: Any, output: Any) -> None:
        found[path] = look(output)

    with ExitStack() as stack:
        for path in dict.fromkeys(paths):
            handle = model.get_submodule(path).register_forward_hook(partial(note, path))
            stack.callback(handle.remove)
        yield found


def first(output: Any, path: str) -> Tensor:
    """The first tensor that a module returned.

    Raises:
        ModelError: there is none.
    """
    found = tensors_in(output)
    if not found:
        raise ModelError(
            f"Modules that are compared return tensors, got {type(output).__name__} from {path!r}."
        )
    return found[0]


def shapes_of(model: nn.Module, graph: Graph, paths: Sequence[str]) -> Shapes:
    """The shapes of what modules return first, at the batch sizes of a graph.

    Args:
        model: takes what the graph's network takes.
        paths: of modules; those that do not run, or return no tensor, are left out.
    """
    known = dict(model.named_modules())
    device, runs = device_of(state_of(model)), []
    for batch in BATCHES if graph.batched else (None,):
        args, kwargs = moved_inputs(graph.example.random(batch), device)
        with (
            torch.no_grad(),
            mode_of(model, training=False),
            Untouched(model),
            captured(model, [path for path in paths if path in known], _shape_of) as seen,
        ):
            try:
                model(*args, **kwargs)
            except Exception as error:
                if is_memory_error(error):
                    raise
                return {}  # the user's forward may raise anything on random inputs
        runs.append(seen)
    return {
        path: tuple(seen[path] for seen in runs)
        for path in runs[0]
        if all(seen.get(path) is not None for seen in runs)
    }


def _shape_of(output: Any) -> tuple[int, ...] | None:
    found = tensors_in(output)
    return tuple(found[0].shape) if found else None


def grown(few: Sequence[int], many: Sequence[int]) -> Rows | None:
    """Where a tensor has its inputs, from its shapes at the two traced batch sizes; None where they do not tell."""
    return rows_in_step(few, many) if len(few) == len(many) else None


def rows_axis(shapes: Sequence[Sequence[int]]) -> int:
    """The axis of inputs; the first where it cannot be told."""
    rows = grown(*shapes) if len(shapes) == len(BATCHES) else None
    return 0 if rows is None else rows.axis


def output_of(graph: Graph, path: str, shapes: Shapes) -> int | None:
    """The number of the tensor that a module returns first: of those made inside, the last one of its shape, before
    others one that is read outside. None of a module of which nothing is read outside."""
    prefix = f"{path}."
    inside = [op for op in graph.ops if op.module == path or op.module.startswith(prefix)]
    numbers = {op.index for op in inside}
    outside = set(graph.outputs).union(*(op.inputs for op in graph.ops if op.index not in numbers))
    made = [number for op in inside for number in op.outputs if number is not None]
    if not outside.intersection(made):
        return None
    wanted = shapes.get(path, (None,))[0]
    alike = [number for number in made if wanted is None or graph.tensors[number].shape == wanted]
    return max(alike, key=lambda number: (number in outside, number), default=None)
