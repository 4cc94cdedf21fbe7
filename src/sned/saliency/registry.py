"""Criteria by name, what each must be given, and the one call that runs any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sned.errors import CalibrationError, UserError, close_names
from sned.graph.ir import Graph
from sned.progress import SILENT, Progress
from sned.saliency.scores import Scores

if TYPE_CHECKING:
    from sned.calibration import Moments

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at.

    Attributes:
        graph: the network's structure.
        state: parameters and buffers by name, of the dense network.
        moments: what its consumers' inputs look like (`sned.calibration`).
        batches: inputs as the model takes them.
        labels: int64 class labels `[n]`, one tensor a batch; without them, gradient criteria use the network's own
            answers.
        seed: of whatever is drawn at random.
        progress: told how far it is.
    """

    graph: Graph
    state: State
    moments: Moments | None = None
    batches: Sequence[Any] = ()
    labels: Sequence[torch.Tensor] = ()
    seed: int = 0
    progress: Progress = field(default=SILENT)


@dataclass(frozen=True)
class Criterion:
    """A way to say which units matter.

    Attributes:
        name: as the literature names it.
        summary: one line for lists.
        run: the criterion itself.
        needs: the fields of `Evidence` that must not be empty.
    """

    name: str
    summary: str
    run: Callable[[Evidence], Scores]
    needs: tuple[str, ...] = ()


CRITERIA: dict[str, Criterion] = {}
"""Every criterion by name; importing `sned.saliency` fills it."""

_WHERE = {
    "moments": "pass calibration inputs",
    "batches": "pass calibration inputs",
}


def criterion(
    name: str, summary: str, *, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Evidence], Scores]], Callable[[Evidence], Scores]]:
    """Register a function from `Evidence` to `Scores` under a name."""

    def register(run: Callable[[Evidence], Scores]) -> Callable[[Evidence], Scores]:
        CRITERIA[name] = Criterion(name, summary, run, needs)
        return run

    return register


def score(name: str, evidence: Evidence) -> Scores:
    """Run the criterion called `name`.

    Raises:
        UserError: no criterion is called so; close names are listed.
        CalibrationError: it needs calibration inputs and there are none.
    """
    found = CRITERIA.get(name)
    if found is None:
        raise UserError(f"No saliency criterion is called {name!r}. {close_names(name, CRITERIA)}")
    for need in found.needs:
        if not getattr(evidence, need):
            raise CalibrationError(
                f"The criterion {name!r} needs {need}, which were not given: {_WHERE[need]}, or use a criterion that "
                "looks at weights only, such as 'l2'."
            )
    return found.run(evidence)
