"""The training loop: steps, validation, checkpoints. All that it does is a function of the recipe and the position."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sned.errors import TrainingError
from sned.graph.modules import modes_of, put_modes
from sned.progress import SILENT, Progress
from sned.training.checkpoint import NAME, check_same, load_run, put_weights, save_run, weights_of
from sned.training.data import Batch, Batches
from sned.training.interrupts import Interrupt, deferred
from sned.training.judging import judged
from sned.training.logs import Epoch, write_log
from sned.training.memory import fitting
from sned.training.modes import put_in_training
from sned.training.objectives import shares
from sned.training.optimisers import coarse, find_schedule, make_optimiser, moving_average, rate_factor
from sned.training.parts import Objective, Part, Trained
from sned.training.randomness import STEP, seed_all
from sned.training.recipe import Recipe
from sned.training.tasks import Metric

if TYPE_CHECKING:
    from accelerate import Accelerator

LOOKS = 20
"""Steps between looks at what a GPU or other processes found: each look waits for them."""

NEVER = torch.iinfo(torch.int64).max

_PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU")
"""Kinds of setup in which PyTorch does all by itself."""


@dataclass
class Position:
    """How far a run is. `sums` are of the running epoch: each term times inputs, and the inputs."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    inputs: int = 0
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    stopped: str = ""


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a run needs.

    Attributes:
        model: trained in place.
        inputs: that an epoch trains on, over all processes.
        identity: of the network and of the run, `{"network": …, "run": …}`: what a checkpoint must agree with.
        folder: of the checkpoint; None writes none.
    """

    model: nn.Module
    data: Batches
    inputs: int
    recipe: Recipe
    objective: Objective
    metric: Metric
    accelerator: Accelerator
    identity: dict[str, dict[str, str]]
    validation: Batches | None = None
    parts: Sequence[Part] = ()
    folder: Path | None = None
    log: Path | None = None
    progress: Progress = SILENT


class Loop:
    """One run, from its checkpoint or from the start; `run` does it, and leaves what is handed over in the model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        recipe, self.acc = job.recipe, job.accelerator
        self.steps = -(-len(job.data) // recipe.accumulate)
        self.total = self.steps * recipe.epochs
        self.at = Position()
        self.best: dict[str, Any] | None = None
        self.good: dict[str, Any] | None = None
        self.modes = modes_of(job.model)
        job.model.to(self.acc.device)
        optimiser, self.clip = make_optimiser(job.model, recipe)
        self.average = moving_average(job.model, recipe.ema * self.total)
        wrapped, prepared = self.acc.prepare(job.model, optimiser)
        self.wrapped: nn.Module = wrapped
        # Without a scaler Accelerate only passes these two on, and looks for libraries each time: a quarter of a
        # millisecond a step.
        self.plain = self.acc.scaler is None and self.acc.distributed_type.value in _PLAIN
        self.raw = optimiser
        self.optimiser: Any = optimiser if self.plain else prepared
        self.rates: list[float] = [float(group["lr"]) for group in optimiser.param_groups]
        schedule = recipe.schedule
        self.schedule = find_schedule(schedule) if isinstance(schedule, str) else schedule
        self.bad = torch.tensor(NEVER, device=self.acc.device)
        self.patient = self.acc.device.type != "cpu" or self.acc.num_processes > 1

    # --- the whole run ---------------------------------------------------------------------------------------------

    def run(self) -> Position:
        """Train to the end, to an early stop, or to Ctrl-C."""
        self._resume()
        before = self.at.epoch * self.steps + self.at.batch
        share = self.job.inputs / self.steps
        with (
            deferred() as interrupt,
            self.job.progress.task("fine-tuning", total=round(self.total * share)) as advance,
        ):
            advance(round(before * share))
            while self.at.epoch < self.job.recipe.epochs and not self.at.stopped:
                self._epoch(interrupt, lambda count: advance(count * self.acc.num_processes))
        self._hand_over()
        return self.at

    def release(self) -> None:
        """Take off what Accelerate put on the model for mixed precision, and give its modules their modes back."""
        put_modes(self.modes)
        self.acc.unwrap_model(self.wrapped, keep_fp32_wrapper=False)

    def _epoch(self, interrupt: Interrupt, advance: Any) -> None:
        put_in_training(self.wrapped, self.modes)
        start = time.perf_counter()
        batches = self.job.data.epoch(self.at.epoch, self.at.batch)
        while self.at.batch < len(self.job.data):
            advance(self._step(batches))
            self._look(interrupt)
            if self.at.stopped:
                self.at.seconds += time.perf_counter() - start
                self._save()
                return
            every = self.job.recipe.save_every
            if every and self.at.step % every == 0 and self.at.batch < len(self.job.data):
                now = time.perf_counter()
                self.at.seconds, start = self.at.seconds + now - start, now
                self._save()
        self.at.seconds += time.perf_counter() - start
        self._end_epoch()

    def _end_epoch(self) -> None:
        self._check(weights=True)
        start, trained = time.perf_counter(), self.at.seconds
        judged = self._judge()
        sums, inputs = self._sums()
        terms = {name: value / max(inputs, 1) for name, value in sums.items()}
        self.at.history.append(
            Epoch(
                epoch=self.at.epoch + 1,
                step=self.at.step,
                loss=sum(terms.values()),
                terms=terms,
                learning_rate=self._rate_at(self.at.step - 1),
                metric=judged,
                seconds=trained + time.perf_counter() - start,
                inputs_per_second=inputs / max(trained, 1e-9),
            )
        )
        self.at.epoch, self.at.batch, self.at.sums, self.at.inputs, self.at.seconds = (
            self.at.epoch + 1,
            0,
            {},
            0,
            0.0,
        )
        self._keep_best(judged)
        if self._waited_enough():
            self.at.stopped = "early"
        elif self.at.epoch == self.job.recipe.epochs:
            self.at.stopped = "finished"
        self.good = weights_of(self._judged_model())
        self._save()
        if self.job.log is not None and self.acc.is_main_process:
            write_log(self.job.log, self.at.history)

    # --- one step --------------------------------------------------------------------------------------------------

    def _step(self, batches: Iterator[Batch]) -> int:
        """Make a step; returns the inputs trained on by this process."""
        recipe = self.job.recipe
        factor = rate_factor(self.schedule, self.at.step, self.total, recipe.warmup)
        for group, peak in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = factor * peak
        wanted = min(recipe.accumulate, len(self.job.data) - self.at.batch)
        taken = self._taken(batches, wanted)
        seed_all(recipe.seed, STEP, self.at.step, self.acc.process_index)
        inputs = sum(batch.count for batch in taken)
        with fitting(*self._told(inputs)):
            self.optimiser.zero_grad(set_to_none=True)
            for number, (batch, share) in enumerate(
                zip(taken, shares(self.job.objective, taken), strict=True)
            ):
                self._backward(batch, share, last=number == wanted - 1)
            if self.clip:
                self.acc.clip_grad_norm_(self.wrapped.parameters(), self.clip)
            elif self.job.parts and not self.plain:
                self.acc.unscale_gradients(self.optimiser)
            for part in self.job.parts:
                part.after_backward(self.job.model, self.at.step, self.total)
            self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.job.model)
        self.at.step += 1
        self.at.batch += wanted
        self.at.inputs += inputs
        held = Trained(self.job.model, self.raw, self._averaged)
        for part in self.job.parts:
            part.after_step(held, self.at.step, self.total)
        return inputs

    def _told(self, inputs: int) -> tuple[str, torch.device, str]:
        """A step in words, where it is made, and what to try if it does not fit."""
        world, accumulate = self.acc.num_processes, self.job.recipe.accumulate
        half = max(inputs // (2 * accumulate), 1) * world
        return (
            f"A step on {inputs * world} inputs",
            self.acc.device,
            f"Try batch_size={half} with accumulate={2 * accumulate}, which makes the same steps (a loader has a batch "
            "size of its own). The last checkpoint is whole.",
        )

    def _taken(self, batches: Iterator[Batch], wanted: int) -> list[Batch]:
        try:
            taken = list(islice(batches, wanted))
        except TrainingError:
            self._save()
            raise
        if len(taken) < wanted:
            raise TrainingError(
                "The data ended before the epoch. This is a mistake of sned; please report it."
            )
        return taken

    def _backward(self, batch: Batch, share: Tensor, *, last: bool) -> None:
        with ExitStack() as stack:
            if not last:
                stack.enter_context(self.acc.no_sync(self.wrapped))
            with self.acc.autocast():
                terms = self.job.objective(self.wrapped, batch)
            loss = torch.stack(list(terms.values())).sum()
            part = loss if self.job.recipe.accumulate == 1 else loss * share
            if self.plain:
                part.backward()  # type: ignore[no-untyped-call]
            else:
                self.acc.backward(part)
        self.bad = torch.where(torch.isfinite(loss.detach()), self.bad, self.bad.clamp(max=self.at.step))
        for name, term in terms.items():
            self.at.sums[name] = self.at.sums.get(name, 0.0) + term.detach().double() * batch.count

    # --- what is looked at now and then ------------------------------------------------------------------------------

    def _look(self, interrupt: Interrupt) -> None:
        """Whether the loss is still a number, and whether Ctrl-C was pressed, in any process."""
        if self.patient and self.at.step % LOOKS and self.at.batch < len(self.job.data):
            return
        self._check()
        asked = bool(interrupt)
        if self.acc.num_processes > 1:
            told = torch.tensor([float(asked)], device=self.acc.device)
            asked = float(self.acc.reduce(told, "sum")) > 0
        if asked:
            self.at.stopped = "interrupted"

    def _check(self, *, weights: bool = False) -> None:
        """Stop where the loss (or a weight) is no number any more; the checkpoint is left as it was before.

        Raises:
            TrainingError: says at which step, and what to try.
        """
        bad = self.bad
        if weights and not _finite(self.job.model):
            bad = bad.clamp(max=self.at.step - 1)
        if self.acc.num_processes > 1:
            bad = -torch.as_tensor(self.acc.gather(-bad.reshape(1))).max()
        if int(bad) == NEVER:
            return
        self._hand_over()
        kept = None if self.job.folder is None else self.job.folder / NAME
        where = f" The last good checkpoint is '{kept}'." if kept is not None and kept.is_file() else ""
        tried = "half the learning rate; a longer `warmup`; `clip=1.0`; `precision='no'`"
        if found := coarse(self.job.model):
            tried = f"`model.float()`, since its weights are {found}; {tried}"
        raise TrainingError(
            f"The loss must be a number, but at step {int(bad) + 1} (epoch {int(bad) // self.steps + 1}) it, or a "
            f"weight, became NaN or infinite, at a learning rate of {self._rate_at(int(bad)):.3g}.{where} Try {tried}; "
            "and look for NaN among the inputs."
        )

    def _rate_at(self, step: int) -> float:
        return self.rates[0] * rate_factor(self.schedule, step, self.total, self.job.recipe.warmup)

    def _sums(self) -> tuple[dict[str, float], int]:
        """Sums of the epoch's terms over all processes, and its inputs."""
        held = [*self.at.sums.values(), self.at.inputs]
        own = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=self.acc.device) for value in held]
        )
        *sums, inputs = torch.as_tensor(self.acc.reduce(own, "sum")).tolist()
        return dict(zip(self.at.sums, sums, strict=True)), int(inputs)

    # --- validation --------------------------------------------------------------------------------------------------

    @property
    def _averaged(self) -> nn.Module | None:
        return None if self.average is None else self.average.module

    def _judged_model(self) -> nn.Module:
        """The moving average, where there is one."""
        return self._averaged or self.job.model

    def _judge(self) -> float | None:
        if self.job.validation is None:
            return None
        return judged(self._judged_model(), self.job.validation, self.job.metric, self.acc)

    def _keep_best(self, value: float | None) -> None:
        ready = all(part.ready(self.at.step, self.total) for part in self.job.parts)
        if value is None or not ready or not value > (self.best or {"metric": -math.inf})["metric"]:
            return  # NaN is better than nothing at all in no comparison
        self.best = {"metric": value, "epoch": self.at.epoch, "weights": weights_of(self._judged_model())}

    def _waited_enough(self) -> bool:
        patience = self.job.recipe.patience
        return (
            patience is not None and self.best is not None and self.at.epoch - self.best["epoch"] >= patience
        )

    # --- on disk -----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        folder = self.job.folder
        if folder is None:
            return
        self._check(weights=True)
        terms, inputs = self._sums()
        if self.acc.is_main_process:
            position = asdict(self.at) | {"sums": terms, "inputs": inputs}
            scaler = self.acc.scaler
            save_run(
                folder,
                {
                    "identity": self.job.identity,
                    "position": position | {"stopped": self.at.stopped.replace("interrupted", "")},
                    "weights": weights_of(self.job.model),
                    "average": None if self._averaged is None else weights_of(self._averaged),
                    "optimiser": self.optimiser.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "best": self.best,
                },
            )
        self.acc.wait_for_everyone()

    def _resume(self) -> None:
        """Go on from the checkpoint, where there is one.

        Raises:
            CheckpointError: it is of another network or run, or damaged.
        """
        folder = self.job.folder
        data = load_run(folder) if folder is not None else None
        if data is None or folder is None:
            return
        check_same(data["identity"], self.job.identity, folder / NAME)
        put_weights(self.job.model, data["weights"])
        if self.average is not None and self._averaged is not None:
            put_weights(self._averaged, data["average"])
            self.average.n_averaged.fill_(data["position"]["step"])
        self.optimiser.load_state_dict(data["optimiser"])
        if self.acc.scaler is not None and data["scaler"] is not None:
            self.acc.scaler.load_state_dict(data["scaler"])
        history = [Epoch(**epoch) for epoch in data["position"].pop("history")]
        self.at, self.best = Position(**data["position"], history=history), data["best"]
        if not self.acc.is_main_process:  # the first process has the sums of all
            self.at.sums, self.at.inputs = dict.fromkeys(self.at.sums, 0.0), 0
        self.good = weights_of(self._judged_model())

    def _hand_over(self) -> None:
        """Put what is handed over into the model: the best epoch's weights, the average's, or its own."""
        # In the midst of a run that failed the weights may be no numbers any more.
        chosen = weights_of(self._judged_model()) if self.at.stopped else self.good
        if self.job.recipe.keep == "best" and self.best is not None:
            chosen = self.best["weights"]
        if chosen is not None:
            put_weights(self.job.model, chosen)


def _finite(model: nn.Module) -> bool:
    parameters = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())
