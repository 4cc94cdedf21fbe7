"""Gradients of a loss by the weights, batch by batch, on the replay; the model is not touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.nn.functional import cross_entropy

from sned.calibration.patches import whole_batches
from sned.errors import CalibrationError
from sned.graph.example import batch_in
from sned.graph.replay import Replay
from sned.saliency.registry import Evidence, State

INPUTS = 256
"""Calibration inputs that the gradients are taken on."""


def gradients(evidence: Evidence) -> Iterator[dict[str, torch.Tensor]]:
    """For each batch the gradient of its mean loss by every trainable parameter of the graph; zero where the
    loss does not reach. See `losses`.

    Raises:
        CalibrationError: there is no calibration.
    """
    for loss, leaves in losses(evidence):
        yield derived(loss, leaves)


def mean_gradient(evidence: Evidence) -> dict[str, torch.Tensor]:
    """The mean over batches of `gradients`."""
    return mean(gradients(evidence))


def losses(evidence: Evidence) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """For each batch its mean loss, and the trainable parameters of the graph that it can be differentiated
    by.

    With labels the loss is the cross-entropy of the first output. Without, targets are drawn from what the
    network itself answers (a class from its distribution, else its output plus Gaussian noise), so that the
    squares of the gradients estimate its Fisher information. The same evidence gives the same losses.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    names = [name for name in graph.parameters if name in graph.trainable]
    leaves = {name: evidence.state[name].detach().clone().requires_grad_() for name in names}
    replay = Replay(graph, {**evidence.state, **leaves})
    generator = torch.Generator().manual_seed(evidence.seed)
    seen = 0
    for inputs in calibration.batches(0, whole_batches(graph, min(INPUTS, calibration.count))):
        count = batch_in(inputs)
        with torch.enable_grad():
            (answer, *_), _ = replay.run(inputs)
            labels = None if evidence.labels is None else evidence.labels[seen : seen + count]
            loss = _loss(answer, labels, generator)
        seen += count
        yield loss, leaves


def derived(value: torch.Tensor, leaves: State, *, again: bool = False) -> dict[str, torch.Tensor]:
    """The gradient of a scalar by every leaf; zero where it does not depend on one.

    `again`: the result can be differentiated once more.
    """
    found: tuple[torch.Tensor | None, ...] = (None,) * len(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, create_graph=again)
    return {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def mean(each: Iterable[State]) -> dict[str, torch.Tensor]:
    """The mean of tensors by name, batch after batch."""
    total: dict[str, torch.Tensor] = {}
    count = 0
    for found in each:
        count += 1
        for name, tensor in found.items():
            total[name] = total[name] + tensor if name in total else tensor
    return {name: tensor / count for name, tensor in total.items()}


def _loss(answer: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    if labels is not None:
        _check_labels(answer, labels)
        return cross_entropy(answer, labels.to(answer.device))
    fixed = answer.detach().cpu()
    if answer.ndim == 2 and answer.shape[1] > 1:
        drawn = torch.multinomial(fixed.double().softmax(dim=1), 1, generator=generator)[:, 0]
        return cross_entropy(answer, drawn.to(answer.device))
    noise = torch.randn(fixed.shape, generator=generator) * fixed.float().std()
    return (answer - (fixed + noise).to(answer)).square().mean() / 2


def _check_labels(answer: torch.Tensor, labels: torch.Tensor) -> None:
    """Labels name the classes of the first output."""
    fits = answer.ndim >= 2 and labels.shape == (len(answer), *answer.shape[2:])
    if not fits or bool((labels < 0).any()) or bool((labels >= answer.shape[1]).any()):
        raise CalibrationError(
            f"Labels must be classes of the network's first output, {list(answer.shape)} for this batch, got "
            f"{list(labels.shape)} from {int(labels.min())} to {int(labels.max())}. Leave `labels` out where the "
            "network is no classifier."
        )
