"""Criteria by name, what each must be given, and the one call that runs any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sned.errors import CalibrationError, UserError, close_names
from sned.graph.ir import Graph
from sned.graph.trace import check_values
from sned.progress import SILENT, Progress
from sned.saliency.scores import Scores

if TYPE_CHECKING:
    from sned.calibration import Calibration

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at.

    Attributes:
        graph: the network's structure.
        state: parameters and buffers by name, of the dense network.
        calibration: what a few hundred inputs taught (`sned.calibration`).
        labels: int64 class labels `[n]` of the calibration inputs, in their order; without them, criteria
            that need a loss use the network's own answers.
        seed: of whatever is drawn at random.
        progress: told how far it is.
    """

    graph: Graph
    state: State
    calibration: Calibration | None = None
    labels: torch.Tensor | None = None
    seed: int = 0
    progress: Progress = field(default=SILENT)

    @property
    def learnt(self) -> Calibration:
        """The calibration.

        Raises:
            CalibrationError: there is none.
        """
        if self.calibration is None:
            raise CalibrationError(
                "This criterion looks at what enters each layer, but no calibration was given. Pass "
                "calibration inputs, or use a criterion that looks at weights only, such as 'l2'."
            )
        return self.calibration


@dataclass(frozen=True)
class Criterion:
    """A way to say which units matter: as the literature names it, one line for lists, and the function.

    `calibrated`: it needs calibration inputs; `labelled`: it looks at their labels where there are any; `relative`:
    importances are scaled to each group (1 on average), so they rank units and are no error that adds up over groups.
    """

    name: str
    summary: str
    run: Callable[[Evidence], Scores]
    calibrated: bool
    labelled: bool = False
    relative: bool = False


CRITERIA: dict[str, Criterion] = {}
"""Every criterion by name; importing `sned.saliency` fills it."""


def criterion(
    name: str, summary: str, *, calibrated: bool = False, labelled: bool = False, relative: bool = False
) -> Callable[[Callable[[Evidence], Scores]], Callable[[Evidence], Scores]]:
    """Register a function from `Evidence` to `Scores` under a name; `calibrated`: it needs calibration
    inputs; `labelled`: it looks at their labels; `relative`: its importances are scaled to each group."""

    def register(run: Callable[[Evidence], Scores]) -> Callable[[Evidence], Scores]:
        CRITERIA[name] = Criterion(name, summary, run, calibrated, labelled, relative)
        return run

    return register


def criterion_named(name: str) -> Criterion:
    """The criterion called `name`.

    Raises:
        UserError: there is none; close names are listed.
    """
    found = CRITERIA.get(name)
    if found is None:
        known = [each.name for each in CRITERIA.values() if f"({name.casefold()})" in each.summary.casefold()]
        hint = f"It is {known[0]!r} here." if known else close_names(name, CRITERIA)
        raise UserError(f"No saliency criterion is called {name!r}. {hint}")
    return found


def score(name: str, evidence: Evidence) -> Scores:
    """Run the criterion called `name`.

    Raises:
        UserError: no criterion is called so; close names are listed.
        CalibrationError: it needs calibration inputs and there are none.
        ModelError: it looks at weights, and the network has none (on the meta device).
    """
    try:
        return criterion_named(name).run(evidence)
    except NotImplementedError:  # of PyTorch, where values are asked for that are not there
        check_values(evidence.state)
        raise
