"""Gradients of a loss by the weights, batch by batch, on the replay; the model is not touched."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from sned.graph.example import arguments, tensors_in
from sned.graph.replay import Replay
from sned.saliency.registry import Evidence

INPUTS = 256
"""Calibration inputs that the gradients are taken on."""


def gradients(evidence: Evidence) -> Iterator[dict[str, torch.Tensor]]:
    """For each batch the gradient by every trainable parameter of the graph; zero where the loss does not
    reach.

    With labels the loss is the cross-entropy of the first output. Without, targets are drawn from what the
    network itself answers (a class from its distribution, else its output plus Gaussian noise), so that the
    squares of the gradients estimate its Fisher information.

    Raises:
        CalibrationError: there is no calibration.
    """
    graph, calibration = evidence.graph, evidence.learnt
    names = [name for name in graph.parameters if name in graph.trainable]
    leaves = {name: evidence.state[name].detach().clone().requires_grad_() for name in names}
    replay = Replay(graph, {**evidence.state, **leaves})
    generator = torch.Generator().manual_seed(evidence.seed)
    seen = 0
    for inputs in calibration.batches(0, min(INPUTS, calibration.count)):
        count = len(tensors_in(arguments(inputs))[0])
        with torch.enable_grad():
            (answer, *_), _ = replay.run(inputs)
            labels = None if evidence.labels is None else evidence.labels[seen : seen + count]
            loss = _loss(answer, labels, generator)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        seen += count
        yield {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, found, strict=True)}


def _loss(answer: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    if labels is not None:
        return cross_entropy(answer, labels.to(answer.device))
    fixed = answer.detach().cpu()
    if answer.ndim == 2 and answer.shape[1] > 1:
        drawn = torch.multinomial(fixed.double().softmax(dim=1), 1, generator=generator)[:, 0]
        return cross_entropy(answer, drawn.to(answer.device))
    noise = torch.randn(fixed.shape, generator=generator) * fixed.float().std()
    return (answer - (fixed + noise).to(answer)).square().mean() / 2
