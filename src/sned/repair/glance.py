"""How a plan would do after the cheapest repair: a glance, for the many plans of a trade-off curve."""

from __future__ import annotations

from sned.calibration import Calibration
from sned.calibration.divergence import Divergence, divergence
from sned.calibration.patches import whole_batches
from sned.graph.ir import Graph
from sned.graph.plan import Plan
from sned.graph.replay import State, slice_state
from sned.repair.batchnorm import answers_by_batch

MOST, FEWEST = 64, 16
"""Calibration inputs that answer: as many as `MACS` go, within these bounds."""

MACS = 6.0e10
"""Multiply-accumulates of the dense network on them: half a second on two cores."""


def glance(
    graph: Graph, state: State, plan: Plan, calibration: Calibration, *, inputs: int | None = None
) -> Divergence:
    """Cut, normalise each batch with its own statistics, and compare the answers with the dense network's. Nothing is
    built.

    Args:
        graph: of the dense network.
        state: its parameters and buffers.
        plan: what is removed.
        calibration: of the dense network.
        inputs: how many calibration inputs to use; 16 of a large network to 64 of a small one when None.
    """
    given = None if inputs is None else whole_batches(graph, min(inputs, calibration.count))
    count = inputs_for(graph, calibration) if given is None else given
    answers = answers_by_batch(graph, slice_state(state, plan), calibration.batches(0, count), plan)
    return divergence(calibration.outputs(0, count), answers)


def inputs_for(graph: Graph, calibration: Calibration) -> int:
    """How many calibration inputs are enough for a glance."""
    return whole_batches(graph, min(calibration.within(MACS, FEWEST, MOST), calibration.count))
