"""The network of a plan: cut, verified, repaired, and trained where that is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sned.graph.replay import Replay
from sned.graph.trace import state_of
from sned.pipeline.study import Study, timed
from sned.repair import RepairReport, repair
from sned.repair.match import match_on
from sned.search import Found
from sned.surgery.keras import is_keras
from sned.surgery.pytorch import Pruned, fill, pruned
from sned.training import finetune as train

Watch = Callable[[str, nn.Module], None]
"""Is told what was done to a network, and the network."""


class Made(NamedTuple):
    """A network that was cut and verified; what repair did, where there are inputs for it; and both in words."""

    small: Pruned
    told: RepairReport | None
    notes: tuple[str, ...]


def made(study: Study, found: Found, watch: Watch = lambda done, model: None) -> Made:
    """The pruned network of a plan."""
    with timed(study.seconds, "surgery"), study.progress.task("cutting and verifying", total=1):
        small = pruned(study.graph.model, study.graph, found.plan)
    watch("as cut", small.model)
    if study.calibration.synthetic:
        unrepaired = "Nothing was repaired: that takes calibration inputs, a few hundred without labels."
        return Made(small, None, (unrepaired,))
    with timed(study.seconds, "repair"):
        whole = None if study.shortened is None else Replay(study.whole.graph, state_of(study.model))
        state, told = repair(
            study.graph, study.state, found.plan, study.calibration, whole=whole, progress=study.progress
        )
        fill(small.model, study.graph, found.plan, state)
    watch("after repair", small.model)
    return Made(small, told, (repaired_by(told), *told.notes))


def repaired_by(told: RepairReport) -> str:
    """What repair did, in a sentence."""
    before, after = told.before.key, told.after.key
    return (
        f"Repair chose '{told.chosen}' of {len(told.candidates)}: on {told.judged} inputs held out, answers are "
        f"{after:.3g} from the dense network's, {before:.3g} as cut."
    )


def matched(study: Study, small: Pruned, seconds: float) -> tuple[Pruned, tuple[str, ...]]:
    """The network after `seconds` of matching the dense one, and what came of it."""
    with timed(study.seconds, "match"):
        model, note = match_on(
            study.whole.graph, study.calibration, small.model, study.model, seconds, study.progress
        )
    return replace(small, model=model), (note,)


def trained(
    study: Study, small: Pruned, finetune: Mapping[str, Any], watch: Watch, folder: Path | None
) -> tuple[Pruned, tuple[str, ...]]:
    """The network trained further, by default with the dense one as its teacher; and how that went. `folder` is of
    its checkpoint."""
    asked = {"teacher": study.model, "folder": folder, **finetune}
    if asked["teacher"] is None:
        asked.pop("distillation", None)
    with timed(study.seconds, "train"):
        tuned = train(small.model, progress=study.progress, **asked)
    watch("after training", tuned.model)
    return replace(small, model=tuned.model), (tuned.note,)


def handed(model: Any) -> Any:
    """The network as the user knows it."""
    if not is_keras(model):
        return model
    from sned.surgery.keras.road import handed

    return handed(model)
