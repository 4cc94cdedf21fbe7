"""How many whole layers to leave out, and which: more and more go, and the repaired networks are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from sned.calibration.divergence import divergence
from sned.devices import cost_for
from sned.errors import BudgetError, SnedError
from sned.graph import Graph
from sned.graph.trace import state_of
from sned.pipeline.asked import axis_of
from sned.pipeline.choice import Choice, choose
from sned.pipeline.making import made
from sned.pipeline.study import Study, shorter
from sned.repair.batchnorm import answers_by_batch
from sned.repair.glance import inputs_for
from sned.report.compose import Whole
from sned.surgery import without

SHARES = (1 / 3, 2 / 3, 0.95)
"""Of what a budget asks to be saved, how much the layers save that are left out; units save the rest."""


def deepest(study: Study, choice: Choice, search_by: str | None) -> tuple[Study, Choice]:
    """Of networks with more and more layers left out the one that, within the budget and repaired, answers most like
    the whole one.

    Args:
        study: of the whole network.
        choice: the plan for it where no layer is left out.
        search_by: name of a search; None for the default.
    """
    best, chosen, least = study, choice, _error(study, choice)
    tried = [f"with all {least:.3g}"]
    for names in _depths(study, choice):
        short = shorter(study, names)
        try:
            within = choose(short, search_by, None, None)
        except BudgetError:
            continue
        error = _error(short, within)
        tried.append(f"without {', '.join(names)} {error:.3g}")
        if error >= least:
            break
        best, chosen, least = short, within, error
    note = (
        f"Layers to leave out were chosen by how far repaired networks answer from yours: {'; '.join(tried)}."
    )
    return best, replace(chosen, notes=(note, *chosen.notes))


def _error(study: Study, choice: Choice) -> float:
    """How far the repaired network's answers are from the whole one's, on inputs held out."""
    told = made(study, choice.found).told
    assert told is not None
    return told.after.key


def _depths(study: Study, choice: Choice) -> Iterator[tuple[str, ...]]:
    """Layers to leave out, that save more and more of what the budget asks for."""
    axis = axis_of(study.budget)
    needed = 1 - choice.limits[axis] / choice.whole.costs()[axis]
    wanted = [share * needed for share in SHARES]
    gone: tuple[str, ...] = ()
    so_far = 0.0
    for name in _ranked(study, axis):
        if not wanted:
            return
        short = _without(study.whole.graph, (*gone, name))
        if short is None or not so_far < (saved := _saved(study, short, axis)) <= needed:
            continue  # it goes with another one, or too much would
        gone, so_far = (*gone, name), saved
        if saved >= wanted[0]:
            yield gone
            wanted = [share for share in wanted if share > saved]


def _ranked(study: Study, axis: str) -> list[str]:
    """The layers, those first that the answers miss least for what they save."""
    graph, count = study.graph, inputs_for(study.graph, study.calibration)
    dense = _answers(study, graph, count)
    found: list[tuple[float, str]] = []
    with study.progress.task("ranking layers", total=len(graph.layers)) as advance:
        for layer in graph.layers:
            short = _without(graph, (layer.name,))
            if short is not None and (saved := _saved(study, short, axis)) > 0:
                error = divergence(dense, _answers(study, short, count)).key
                found.append((error / saved, layer.name))
            advance(1)
    return [name for _, name in sorted(found)]


def _answers(study: Study, graph: Graph, count: int) -> list[Tensor]:
    """Of a network whose BatchNorms see each batch alone, so that no layer depends on statistics of those before it."""
    return answers_by_batch(graph, state_of(graph.model), study.calibration.batches(0, count))


def _without(graph: Graph, names: Sequence[str]) -> Graph | None:
    """The graph without some layers; None where they cannot all be left out."""
    try:
        return without(graph, names)
    except SnedError:
        return None


def _saved(study: Study, short: Graph, axis: str) -> float:
    """Which share of a cost is saved where layers are left out."""
    return 1 - Whole(short, cost_for(short, study.budget)).costs()[axis] / study.whole.costs()[axis]
