"""A few hundred gradient steps without labels: the pruned network learns to answer as the dense one does.

Each step asks both networks and moves the pruned one towards the dense one's outputs, and towards what enters the dense
one's layers, channel for channel, on the channels that are left:

    loss = |s(x) - t(x)|² / var(t)  +  mean over layers of |a_l(x) - b_l(x)[kept_l]|² / var(b_l[kept_l])

Images are shifted and mirrored at random: that needs no label, since both networks see the same. The step size begins
large, which long runs of small networks are worth most with. Where it soon takes the network further away than it was,
as it does deep ones, the weights go back, and it falls to a third.
Running statistics of BatchNorm stay as repair left them; everything trainable is trained. What is returned is the
network of the step that came closest to the dense one on inputs held out, or the one that was given.

Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.1 (matching logits is the limit
of high temperature); Romero et al., FitNets, 2015 (hidden layers as hints); Wang et al., Practical Network Acceleration
with Tiny Sets, 2023 (features of a few hundred unlabelled inputs are enough).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sned.calibration import Calibration
from sned.calibration.answers import joined, with_rows
from sned.calibration.divergence import divergence, logarithms, probabilities
from sned.errors import BudgetError, CalibrationError, ModelError
from sned.graph import Graph
from sned.graph.example import called, tensors_in
from sned.graph.trace import state_of
from sned.progress import SILENT, Progress
from sned.repair.drawn import COARSE, Drawn
from sned.repair.repair import first_held_out
from sned.surgery import trace
from sned.surgery.keras import is_keras
from sned.surgery.masks import hold_masks, masks_of
from sned.surgery.pytorch import PLAN_ATTRIBUTE
from sned.surgery.twin import copied

LOOKS = 8
"""How often the inputs held out are looked at, evenly over the steps or the time."""

STEPS = 300
"""Steps where neither a number of them nor a time is given."""

BATCH = 64
"""Inputs a step."""

RATE = 3e-3
"""Largest step size of Adam, to begin with."""

TOO_FAR, RECENT = 2.0, 8
"""How much larger than at the start the mean error of answers may become in how many steps before the step size falls;
a single step may be so bad that it falls at once."""

SMALLER = 1 / 3
"""What a step size that was too large falls to."""

WARM_UP = 0.1
"""Share of the steps, or of the time, in which a step size rises."""

FEWEST = 32
"""Inputs below which there is nothing to learn from."""

FURTHER = 65536
"""Inputs beyond those that layers are scored and repaired by, from which matching learns, at most."""

JUDGED = 2048
"""Inputs held out, at most."""

Kept = Mapping[str, Tensor | None]

Features = Mapping[str, Sequence[Tensor]]

_FLOATS = ("float", "bfloat")

_Layer = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Matched:
    """What the steps did.

    Attributes:
        model: the network of the best step.
        steps: how many were taken.
        best: the number of the best one; 0 is the network that was given.
        divergences: `(step, divergence from the dense network on inputs held out)` of every look.
        seconds: how long it took.
    """

    model: nn.Module
    steps: int
    best: int
    divergences: tuple[tuple[int, float], ...] = field(default=())
    seconds: float = 0.0

    @property
    def note(self) -> str:
        """That in a sentence."""
        first, last = self.divergences[0][1], dict(self.divergences)[self.best]
        return (
            f"Matching: {self.steps} label-free steps in {self.seconds:.0f} s; divergence from the dense network on "
            f"inputs held out {first:.3g} before, {last:.3g} at the best step ({self.best})."
        )


def check_seconds(seconds: float | None) -> None:
    """Refuse a time to match for that is none.

    Raises:
        BudgetError: it is not more than 0.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise BudgetError(f"`match_seconds` is a time, more than 0 seconds, got {seconds!r}.")


def check_enough(calibration: Calibration) -> None:
    """Refuse too few inputs to match on as soon as they were read.

    Raises:
        CalibrationError: they are real, and fewer than there is something to learn from.
    """
    if not calibration.synthetic:
        _check_count(calibration.count + calibration.further)


def _check_count(count: int) -> None:
    if count < FEWEST:
        raise CalibrationError(
            f"Matching learns from at least {FEWEST} inputs, got {count}. Give more batches."
        )


def check_learns(graph: Graph, model: nn.Module) -> None:
    """Refuse a network that cannot learn to answer as another does.

    Raises:
        ModelError: all its weights are frozen, or no output of it is of real numbers with rows.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "Matching trains what `requires_grad` allows, but every parameter of the model is frozen. Unfreeze some of "
            "them, or leave `match_seconds` out."
        )
    outputs = zip(graph.outputs, graph.rows, strict=True)
    if not any(rows and graph.tensors[number].dtype.startswith(_FLOATS) for number, rows in outputs):
        raise ModelError(
            "Matching compares real numbers that the model answers to each input, but it returns none. Return its "
            "scores too, or leave `match_seconds` out."
        )


def match_on(
    graph: Graph,
    calibration: Calibration,
    model: nn.Module,
    dense: nn.Module,
    seconds: float,
    progress: Progress,
) -> tuple[nn.Module, str]:
    """`match` on all inputs that were read, and what came of it; the model as it is where those are random."""
    if calibration.synthetic:
        return model, "Nothing was matched: that takes calibration inputs, a few hundred without labels."
    batches = calibration.batches(0, calibration.count + calibration.further)
    found = match(model, dense, batches, graph=graph, seconds=seconds, progress=progress)
    return found.model, found.note


@torch.inference_mode(False)
@torch.enable_grad()
def match(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Any],
    *,
    graph: Graph | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    rate: float = RATE,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Matched:
    """Train a pruned network to answer, layer after layer, as the dense one does, without labels.

    Ctrl-C ends it early with the best so far.

    Args:
        model: what is to learn; it is not touched. Masks hold.
        dense: the network that it should answer as; it is not touched.
        batches: inputs without labels, the calibration inputs say, in any order; the last fifth decides, as in
            `repair`, and is not learnt from. All are held in memory.
        graph: of the dense network; traced on the first batch when None.
        steps: gradient steps, at most; 300 where neither they nor a time are given.
        seconds: time, at most; the step size falls to nothing towards whichever end comes first.
        rate: largest step size of Adam.
        seed: of the draw of inputs.
        progress: shown while it runs.

    Raises:
        CalibrationError: fewer inputs than there is something to learn from.
        ModelError: nothing can learn, or there are no answers to compare.
    """
    if steps is None and seconds is None:
        steps = STEPS
    every = list(batches)
    if not every:
        _check_count(0)
    graph = graph or _traced(dense, every[0])
    check_learns(graph, model)
    teacher, student = _to_train(dense), _to_train(model)
    inputs = Drawn(graph.example, every, coarse=not is_keras(model))
    _check_count(inputs.count)
    size = BATCH if graph.batched else graph.batch
    start_held = first_held_out(inputs.count, 1 if graph.batched else size)
    if start_held and graph.batched:
        start_held = max(start_held, inputs.count - JUDGED)
    learnt, held = torch.arange(start_held or inputs.count), torch.arange(start_held, inputs.count)
    generator = torch.Generator().manual_seed(seed)
    judge = _Judge(graph, teacher, [inputs.at(rows) for rows in held.split(size)])  # type: ignore[no-untyped-call]
    kept = _inputs_kept(model, dense)
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad]
    paced = _Paced(weights, rate)
    best, state = 0, _snapshot(student)
    looks = [(0, judge(student))]
    start = time.perf_counter()
    done, share = 0, 0.0
    with progress.task("matching the dense network", total=100) as advance:
        try:
            while share < 1:
                drawn = inputs.drawn(learnt, min(size, len(learnt)), generator)
                paced.take(*_losses(graph, student, teacher, kept, drawn), share)
                done += 1
                before, share = share, _share(done, steps, start, seconds)
                if paced.astray:
                    _restore(student, state)
                    paced.slow_down(share)
                advance(int(100 * share) - int(100 * before))
                if share >= len(looks) / LOOKS:
                    looks.append((done, judge(student)))
                    if looks[-1][1] < min(look for _, look in looks[:-1]):
                        best, state = done, _snapshot(student)
        except KeyboardInterrupt:
            pass  # the best so far is as good as it is
    learnt_from = copied(model)  # in the modes and in the precision that were given
    _restore(learnt_from, state)
    return Matched(learnt_from, done, best, tuple(looks), time.perf_counter() - start)


def _traced(dense: Any, example: Any) -> Graph:
    found: Graph = dense.graph if is_keras(dense) else trace(dense, example)
    return found


def _to_train(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in single precision where it has less: Adam's steps vanish in half precision."""
    copy = copied(model).eval()
    if is_keras(copy):
        hold_masks(copy, masks_of(copy))
        return copy
    coarse = any(tensor.dtype in COARSE for tensor in state_of(model).values())
    return copy.float() if coarse else copy


def _share(done: int, steps: int | None, start: float, seconds: float | None) -> float:
    """How much of the steps, or of the time, is gone."""
    spent = (time.perf_counter() - start) / seconds if seconds else 0.0
    taken = done / steps if steps else 0.0
    return min(max(taken, spent), 1.0)


class _Paced:
    """Adam whose step size rises in a line, since its first steps are all of full size whatever the gradient, and then
    falls as a cosine.

    Args:
        weights: what is trained.
        rate: the largest step size.
    """

    def __init__(self, weights: Sequence[nn.Parameter], rate: float) -> None:
        self._weights, self._rate = weights, rate
        self._first = math.nan
        self._begin(0.0)

    def _begin(self, share: float) -> None:
        self._optimiser = torch.optim.Adam(self._weights)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._begun = share

    def take(self, answers: Tensor, features: Tensor, share: float) -> None:
        """A step down from the losses of answers and features, `share` of the way."""
        rising = min((share - self._begun + 0.001) / WARM_UP, 1.0)
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * rising * 0.5 * (1 + math.cos(math.pi * share))
        self._optimiser.zero_grad()
        (answers + features).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._recent.append(float(answers.detach()))
        if math.isnan(self._first):
            self._first = self._recent[0]

    @property
    def astray(self) -> bool:
        """Whether the answers go away from where they began."""
        return not sum(self._recent) <= TOO_FAR * RECENT * self._first

    def slow_down(self, share: float) -> None:
        """Go on with smaller steps."""
        self._rate *= SMALLER
        self._begin(share)


def _losses(
    graph: Graph, student: nn.Module, teacher: nn.Module, kept: Kept, inputs: Any
) -> tuple[Tensor, Tensor]:
    """Of the answers, and of what enters the layers."""
    with torch.no_grad(), _entering(teacher, kept) as wanted_features:
        wanted = _floating(graph, called(teacher, inputs))
    with _entering(student, dict.fromkeys(kept)) as features:
        given = _floating(graph, called(student, inputs))
    answers = torch.stack([_apart(s, t) for s, t in zip(given, wanted, strict=True)]).sum()
    apart = [_relative(s, t) for s, t in _pairs(features, wanted_features)]
    return answers, torch.stack(apart).mean() if apart else torch.zeros_like(answers)


def _relative(given: Tensor, wanted: Tensor) -> Tensor:
    return (given - wanted).square().mean() / wanted.var().clamp(min=1e-8)


def _apart(given: Tensor, wanted: Tensor) -> Tensor:
    """Of two outputs; of the logits where both are probabilities, which say little of a class that is far from likely
    or all but certain."""
    if wanted.ndim == 2 and wanted.shape[1] > 1 and probabilities(wanted) and probabilities(given.detach()):
        given, wanted = (each - each.mean(-1, keepdim=True) for each in map(logarithms, (given, wanted)))
    seen = ~wanted.isneginf()  # the others are masked
    return _relative(given[seen], wanted[seen])


def _floating(graph: Graph, output: Any) -> list[Tensor]:
    return [tensor for tensor in with_rows(graph, tensors_in(output)) if tensor.is_floating_point()]


def _pairs(given: Features, wanted: Features) -> Iterator[tuple[Tensor, Tensor]]:
    """What enters the layers that both networks call equally often, on equally many rows: one may be left out in some
    places, and rows may have gone, or be picked by values."""
    for name, features in given.items():
        if len(features) == len(wanted.get(name, ())):
            pairs = zip(features, wanted[name], strict=True)
            yield from ((mine, theirs) for mine, theirs in pairs if mine.shape == theirs.shape)


def _inputs_kept(model: Any, dense: Any) -> Kept:
    """The channels of what enters each layer that are left, by the name of the layer; None where all are."""
    if is_keras(model):
        kept: Kept = model.inputs_kept(dense)
        return kept
    made: dict[str, Tensor | None] = {}
    wide = dict(dense.named_modules())
    for path, module in model.named_modules():
        weight, whole = getattr(module, "weight", None), getattr(wide.get(path), "weight", None)
        if not isinstance(module, _Layer) or not isinstance(weight, Tensor) or not isinstance(whole, Tensor):
            continue
        if max(getattr(layer, "groups", 1) for layer in (module, wide[path])) > 1:
            continue
        left: Tensor | None = None
        for plan in getattr(model, PLAN_ATTRIBUTE, ())[len(getattr(dense, PLAN_ATTRIBUTE, ())) :]:
            axis = plan.kept.get(f"{path}.weight", {}).get(1)
            if axis is not None:
                at = torch.as_tensor(axis)
                left = at if left is None else left[at]
        if (whole.shape[1] if left is None else len(left)) == weight.shape[1]:
            made[path] = left
    return made


@contextmanager
def _entering(model: Any, kept: Kept) -> Iterator[Features]:
    """What enters each of the named layers while the block runs, in the order of its calls, on the channels kept."""
    if is_keras(model):
        with model.entering(kept) as features:
            yield features
        return
    seen: dict[str, list[Tensor]] = {}

    def note(module: nn.Module, given: tuple[Any, ...], path: str) -> None:
        if not isinstance(module, _Layer) or not given:
            return
        features = given[0]
        if (left := kept[path]) is not None:
            axis = -1 if isinstance(module, nn.Linear) else 1 - module.weight.ndim
            features = features.index_select(axis, left.to(features.device))
        seen.setdefault(path, []).append(features)

    handles = [
        module.register_forward_pre_hook(partial(note, path=path))
        for path, module in model.named_modules()
        if path in kept
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Judge:
    """How far a network's answers are from the dense one's on inputs held out."""

    def __init__(self, graph: Graph, dense: nn.Module, batches: Sequence[Any]) -> None:
        self._graph, self._batches = graph, batches
        self._wanted = self._answers(dense)

    def __call__(self, model: nn.Module) -> float:
        return float(divergence(self._wanted, self._answers(model)).key)

    def _answers(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return joined(self._graph, (tensors_in(called(model, batch)) for batch in self._batches))


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state_of(model).items()}


@torch.no_grad()
def _restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state_of(model).items():
        tensor.copy_(state[name])
