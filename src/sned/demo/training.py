"""Training the demo's network once, and finding it again afterwards."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from sned.demo.cache import cached_weights, keep_weights
from sned.demo.data import Split, digits
from sned.demo.network import make_network
from sned.progress import SILENT, Progress

_EPOCHS, _BATCH, _PEAK_RATE, _DECAY, _SEED = 6, 32, 3e-3, 0.05, 0
_MOST_DEGREES, _MOST_SHIFT = 8.0, 0.08
_PLAUSIBLE = 0.97
"""Validation accuracy below which cached weights are not believed; training gives 0.99."""


def trained_network(progress: Progress = SILENT) -> nn.Module:
    """Give the demo's network, trained: from the user's cache, or else trained now and cached.

    Training takes about half a minute.

    Args:
        progress: told of each training step.

    Returns:
        The network in evaluation mode; at least 98 % of the test images are read correctly.
    """
    network = make_network()
    validation = digits().validation
    weights = cached_weights(network)
    if weights is not None:
        network.load_state_dict(weights)
        if accuracy(network, validation.images, validation.labels) >= _PLAUSIBLE:
            return network
    network = train(progress=progress)
    keep_weights(network)
    return network


def train(*, epochs: int = _EPOCHS, progress: Progress = SILENT) -> nn.Module:
    """Train the demo's network from scratch; of all epochs the best on the validation images is kept.

    AdamW with a one-cycle learning rate, on images shifted, turned and scaled a little at random. The global
    random state of PyTorch is left as it was.

    Args:
        epochs: passes over the training images, at least 1.
        progress: told of each step.
    """
    data = digits()
    batches = math.ceil(len(data.train) / _BATCH)
    with torch.random.fork_rng(devices=[]), progress.task("training", total=epochs * batches) as advance:
        torch.manual_seed(_SEED)
        network = make_network()
        best, kept = -1.0, network.state_dict()
        optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, _PEAK_RATE, total_steps=epochs * batches, pct_start=0.25
        )
        for _ in range(epochs):
            network.train()
            for images, labels in _shuffled(data.train):
                optimizer.zero_grad()
                cross_entropy(network(_distorted(images)), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                advance(1)
            network.eval()
            reached = accuracy(network, data.validation.images, data.validation.labels)
            if reached >= best:
                best, kept = reached, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network


def accuracy(model: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the fraction of `images` `[n, 1, 32, 32]` whose largest logit is that of their label `[n]`.

    The model is evaluated as it is; put it in evaluation mode first.
    """
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(labels), 128):
            logits = model(torch.tensor(images[start : start + 128]))
            correct += int((logits.argmax(1).numpy() == labels[start : start + 128]).sum())
    return correct / len(labels)


def _shuffled(split: Split) -> list[tuple[Tensor, Tensor]]:
    order = np.array_split(torch.randperm(len(split)).numpy(), math.ceil(len(split) / _BATCH))
    return [(torch.tensor(split.images[part]), torch.tensor(split.labels[part])) for part in order]


def _distorted(images: Tensor) -> Tensor:
    """Turn, scale and shift each image a little, as another hand would have."""
    n = len(images)
    angle = (torch.rand(n) * 2 - 1) * math.radians(_MOST_DEGREES)
    scale = 1 + (torch.rand(n) * 2 - 1) * _MOST_SHIFT
    shift = (torch.rand(2, n) * 2 - 1) * _MOST_SHIFT
    rows = (
        scale * angle.cos(),
        -scale * angle.sin(),
        shift[0],
        scale * angle.sin(),
        scale * angle.cos(),
        shift[1],
    )
    grid = affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
