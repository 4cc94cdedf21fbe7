"""The short road to zeros inside tensors: trace, calibrate, thin, and a network that holds its zeros."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sned.calibration import calibrate
from sned.calibration.patterns import SINGLE, Pattern
from sned.graph.example import Inputs
from sned.graph.plan import Plan
from sned.graph.trace import state_of
from sned.progress import SILENT, Progress
from sned.repair.match import FURTHER, check_enough, check_learns, check_seconds, match_on
from sned.repair.repair import few_of, load_state
from sned.repair.thin import thin
from sned.surgery import trace
from sned.surgery.home import CPU, home_of, moved, moved_inputs
from sned.surgery.keras import is_keras
from sned.surgery.masks import hold_masks
from sned.surgery.pytorch import pruned

INPUTS = 1024
"""Calibration inputs read, at most."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A network with zeros inside its tensors.

    Attributes:
        model: of the user's own class; its zeros hold while it is trained (`sned.burn_in` lets go of them).
        plan: the masks; `sned.apply` puts them on other weights.
        pattern: of the zeros.
        sparsity: share of zeros among the weights that were thinned.
        zeros: the same of each of them, by name.
        divergence: how far its answers were from the dense network's on inputs held out (0: the same), ahead of any
            matching.
        note: all that in a sentence.
    """

    model: Any
    plan: Plan = field(repr=False)
    pattern: str
    sparsity: float
    zeros: Mapping[str, float] = field(repr=False)
    divergence: float
    note: str


def sparsify(
    model: Any,
    example_inputs: Inputs,
    *,
    sparsity: float | None = None,
    pattern: str = SINGLE,
    calibration: Iterable[Any] | None = None,
    match_seconds: float | None = None,
    workdir: Path | None = None,
    progress: Progress = SILENT,
) -> Sparse:
    """Put zeros into the weights of a network; the others answer for them. No labels, and no gradients unless asked.

    Zeros make a file smaller once it is compressed; only some runtimes on some hardware are faster for them. For a
    network that is smaller and faster everywhere use `sned.prune`; both go together, pruning first.

    Args:
        model: any `nn.Module` or Keras 3 model, pruned by sned or not; it is not touched. Zeros of a Keras model hold
            through `fit` with the callback `sned.keras.HoldZeros`.
        example_inputs: as for `sned.trace`.
        sparsity: share of weights that become zero, in (0, 1); an N:M pattern has its own.
        pattern: "weight" for single ones, "N:M" such as "2:4" along the contracted axis, or blocks of outputs x
            inputs such as "1x4".
        calibration: batches of inputs, a few hundred in all, without labels; random ones when None.
        match_seconds: time to spend, after that, on gradient steps of the other weights towards the dense network's
            answers and features, on these inputs and up to 65,536 more; None for no such steps.
        workdir: where activations are spooled to when there are many.
        progress: shown while it runs.

    Returns:
        The masked network and what it holds.

    Raises:
        PlanError: an unknown pattern, or a sparsity that does not go with it.
        ModelError: the model does not run on the example.
        BudgetError: `match_seconds` is no time.
        CalibrationError: the inputs are not what the model takes, or too few to match on.

    Example:
        >>> sparse = sned.sparsify(model, x, pattern="2:4", calibration=batches)
        >>> sned.save(sparse.model, "sparse.safetensors")
    """
    wanted = Pattern.parse(pattern)
    wanted.share(sparsity)  # what cannot be is told before any work
    check_seconds(match_seconds)
    if is_keras(model):
        from sned.surgery.keras.road import calibration_of, inputs_of, network_for

        model, example_inputs = network_for(model, example_inputs), inputs_of(example_inputs)
        calibration = calibration_of(calibration, *example_inputs)
    home = home_of(model)
    model, example_inputs = moved(model, CPU), moved_inputs(example_inputs, CPU)
    with progress.task("tracing", total=1):
        graph = trace(model, example_inputs)
    state = state_of(model)
    if match_seconds is not None:
        check_learns(graph, model)
    further = FURTHER if match_seconds is not None else 0
    learnt = calibrate(
        graph, state, calibration, limit=INPUTS, further=further, progress=progress, workdir=workdir
    )
    if match_seconds is not None:
        check_enough(learnt)
    found = thin(graph, state, learnt, pattern=wanted, sparsity=sparsity, progress=progress, workdir=workdir)
    masks = {name: mask.cpu().numpy() for name, mask in found.masks.items()}
    plan = replace(graph.plan({}), masks=masks)
    with progress.task("cutting and verifying", total=1):
        small = pruned(model, graph, plan).model
    load_state(small, found.state)
    best = min(found.candidates, key=lambda candidate: candidate.divergence.key)
    left = f" (dense stay {few_of(found.dense)})" if found.dense else ""
    note = (
        f"{found.sparsity:.1%} of the weights in {len(masks)} tensors are zero ({pattern}), "
        f"{found.overall:.1%} of all{left}, from {learnt.note}; "
        f"divergence from the dense network on inputs held out: {best.divergence.key:.3g}."
    )
    if match_seconds is not None:
        hold_masks(small, found.masks)
        small, said = match_on(graph, learnt, small, model, match_seconds, progress)
        note = f"{note} {said}"
    if is_keras(small):
        from sned.surgery.keras.road import handed

        small = handed(small)
    else:
        small = moved(small, home)
    zeros = {name: float(1 - mask.mean()) for name, mask in masks.items()}
    return Sparse(small, plan, pattern, found.sparsity, zeros, best.divergence.key, note)
