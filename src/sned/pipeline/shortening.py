"""Whole layers out first: what is left of the network learns to answer as the whole one does, and is pruned then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from sned.calibration import Calibration, Resume, calibrate
from sned.graph import Graph
from sned.graph.replay import Replay
from sned.graph.trace import state_of
from sned.progress import Progress
from sned.repair import RepairReport, load_state, repair
from sned.surgery.keras import is_keras
from sned.surgery.twin import twin


class Mended(NamedTuple):
    """A network without some of its layers, repaired; what it was repaired on; and what repair did."""

    graph: Graph
    inputs: Calibration
    told: RepairReport


def mended(
    dense: Graph,
    short: Graph,
    batches: Iterable[Any] | Calibration,
    further: int,
    progress: Progress,
    resume: Resume,
) -> Mended:
    """Repair what layers that are left out have left, towards the answers of the whole network.

    Args:
        dense: of the whole network.
        short: what `sned.without` made of it.
        batches, further, progress, resume: as for `calibrate`.
    """
    state, whole = state_of(short.model), Replay(dense, state_of(dense.model))
    inputs = calibrate(
        short, state, batches, further=further, moments=False, progress=progress, resume=resume
    )
    repaired, told = repair(short, state, short.plan({}), inputs, whole=whole, progress=progress)
    return Mended(_with_state(short, {**state, **repaired}), inputs, told)


def _with_state(graph: Graph, state: Mapping[str, Tensor]) -> Graph:
    """The graph with a model that holds other values; tensors of the whole one's are not written into."""
    if is_keras(graph.model):  # a model of its own already
        load_state(graph.model, state)
        graph.model.push()
        return graph
    return replace(graph, model=twin(graph.model, state))
