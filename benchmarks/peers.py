"""What the best-known alternatives make of the same network at the same cost, in the same run.

Each peer is set up as its own documentation recommends; the cost is counted by PyTorch, by neither side.
"""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from sned.errors import BudgetError, NotFoundError, close_names
from sned.progress import SILENT, Progress

_TOLERANCE = 0.002
"""MACs this fraction below the target are near enough; one channel of a ResNet-56 moves about as much."""
_BISECTIONS = 14


@dataclass(frozen=True)
class Peer:
    """A network that a peer pruned: MACs an image before and after, its own ratio, the seconds taken."""

    model: nn.Module
    dense_macs: int
    macs: int
    pruning_ratio: float
    seconds: float


@dataclass(frozen=True)
class _Criterion:
    """How Torch-Pruning is asked: its importance, over all layers at once or layer by layer, by gradients?"""

    importance: Callable[[], Any]
    everywhere: bool
    gradients: bool = False


def _magnitude(p: int) -> Callable[[], Any]:
    def make() -> object:
        import torch_pruning

        return torch_pruning.importance.GroupMagnitudeImportance(p=p)

    return make


def _taylor() -> object:
    import torch_pruning

    return torch_pruning.importance.GroupTaylorImportance()


CRITERIA = {
    "l1-global": _Criterion(_magnitude(1), everywhere=True),
    "l2-uniform": _Criterion(_magnitude(2), everywhere=False),
    "taylor-global": _Criterion(_taylor, everywhere=True, gradients=True),
}


def macs(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-accumulates of matrix products and convolutions for one of `example` `[n, …]`.

    Half of what `torch.utils.flop_counter` counts, so that neither side counts its own work.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return int(counter.get_total_flops()) // (2 * len(example))


def torch_pruning(
    model: nn.Module,
    example: Tensor,
    macs_fraction: float,
    *,
    criterion: str = "l1-global",
    ignored: Sequence[str] = (),
    labelled: Sequence[tuple[Tensor, Tensor]] = (),
    steps: int = 1,
    progress: Progress = SILENT,
) -> Peer:
    """Prune a copy of `model` with Torch-Pruning to at most `macs_fraction` of its MACs, without training.

    Torch-Pruning takes a ratio of channels, not a budget. In one shot the ratio is found by bisection, each
    time on a fresh copy, and the largest network within the target is given. In several steps it prunes a
    little at a time, looks at the pruned network anew, and stops at the target: its own benchmark script does
    so in 400 steps.

    Args:
        model: in evaluation mode; left as it is.
        example: inputs `[n, …]` to trace and count with.
        macs_fraction: what may remain, in (0, 1).
        criterion: one of `CRITERIA`.
        ignored: names of the modules whose outputs must stay, such as the classifier.
        labelled: batches of inputs and labels, for the gradients of "taylor-global"; used at each step.
        steps: 1 for one shot, or into how many equal parts the whole of the channels is divided.
        progress: told of each step.

    Raises:
        NotFoundError: an unknown criterion, or Torch-Pruning is not installed.
        BudgetError: `macs_fraction` is out of range, or cannot be reached.

    Reference: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023; its `reproduce/main.py`.
    """
    if not 0 < macs_fraction < 1:
        raise BudgetError(f"`macs_fraction` must be in (0, 1), got {macs_fraction}.")
    if criterion not in CRITERIA:
        raise NotFoundError(f"There is no criterion '{criterion}'. {close_names(criterion, CRITERIA)}")
    start = time.perf_counter()
    dense = macs(model, example)
    job = _Job(model, example, CRITERIA[criterion], tuple(ignored), tuple(labelled), macs_fraction * dense)
    run = _in_one_shot if steps == 1 else partial(_little_by_little, steps=steps)
    small, count, ratio = run(job, progress)
    small.zero_grad(set_to_none=True)
    return Peer(small, dense, count, ratio, time.perf_counter() - start)


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm in `model` by averages over `batches`, in place."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = [norm.training for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for a plain average over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, momentum, training in zip(norms, momenta, was_training, strict=True):
        norm.momentum = momentum
        norm.train(training)


@dataclass(frozen=True)
class _Job:
    """What is asked of Torch-Pruning, whichever way it goes about it."""

    model: nn.Module
    example: Tensor
    criterion: _Criterion
    ignored: tuple[str, ...]
    labelled: tuple[tuple[Tensor, Tensor], ...]
    target: float

    def pruner(self, model: nn.Module, ratio: float, steps: int) -> Any:
        """Its pruner of `model`, to remove `ratio` of the channels in `steps` calls of `step()`."""
        try:
            import torch_pruning
        except ImportError as error:
            raise NotFoundError("Torch-Pruning is not installed: run `pip install 'sned[bench]'`.") from error
        return torch_pruning.pruner.BasePruner(
            model,
            self.example,
            importance=self.criterion.importance(),
            global_pruning=self.criterion.everywhere,
            pruning_ratio=ratio,
            iterative_steps=steps,
            ignored_layers=[model.get_submodule(name) for name in self.ignored],
        )


def _in_one_shot(job: _Job, progress: Progress) -> tuple[nn.Module, int, float]:
    """Bisect the ratio, of which MACs are a falling function, for the largest network within the target."""
    scored = _copy(job.model)
    _add_gradients(scored, job)
    low, high = 0.0, 1.0
    best: tuple[nn.Module, int, float] | None = None
    with progress.task("Torch-Pruning", total=_BISECTIONS) as advance:
        for _ in range(_BISECTIONS):
            ratio = (low + high) / 2
            small = _copy(scored)
            job.pruner(small, ratio, steps=1).step()
            count = macs(small, job.example)
            advance(1)
            if count > job.target:
                low = ratio
                continue
            high = ratio
            if best is None or count > best[1]:
                best = (small, count, ratio)
            if count >= (1 - _TOLERANCE) * job.target:
                break
    if best is None:
        raise BudgetError(
            f"Torch-Pruning does not reach {job.target:.4g} MACs at any ratio below {high:.4f}."
        )
    return best


def _little_by_little(job: _Job, progress: Progress, *, steps: int) -> tuple[nn.Module, int, float]:
    """Prune on until the target is met; scores and gradients are those of the network so far."""
    small = _copy(job.model)
    pruner = job.pruner(small, 1.0, steps)
    with progress.task("Torch-Pruning", total=steps) as advance:
        for done in range(1, steps + 1):
            _add_gradients(small, job)
            pruner.step()
            count = macs(small, job.example)
            advance(1)
            if count <= job.target:
                return small, count, done / steps
    raise BudgetError(f"Torch-Pruning does not reach {job.target:.4g} MACs in {steps} steps.")


def _add_gradients(model: nn.Module, job: _Job) -> None:
    """Set the gradients of the summed loss, where the criterion goes by them."""
    if not job.criterion.gradients:
        return
    if not job.labelled:
        raise NotFoundError("This criterion needs gradients: give `labelled` batches of inputs and labels.")
    model.zero_grad(set_to_none=True)
    for inputs, labels in job.labelled:
        cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]


def _copy(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode, with the gradients, which `deepcopy` alone leaves behind."""
    work = copy.deepcopy(model).eval()
    for value, original in zip(work.parameters(), model.parameters(), strict=True):
        value.requires_grad_(True)
        if original.grad is not None:
            value.grad = original.grad.clone()
    return work
