"""Randomness that is a function of where training is, not of how it got there: the ground of an exact resume.

Ahead of every batch and every step the generators of PyTorch, NumPy and Python are seeded from the run's seed and the
position, so a checkpoint need not hold their states, and workers of a data loader draw the same numbers again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

ORDER, FETCH, STEP, SPLIT = range(4)
"""What is drawn: the order of an epoch, a batch with its augmentation, dropout of a step, the held-out inputs."""


def seed_of(*position: int) -> int:
    """A seed in [0, 2^63) for a position in the run, different for different positions."""
    high, low = np.random.SeedSequence(position).generate_state(2, np.uint32).tolist()
    return ((int(high) << 32) | int(low)) & (2**63 - 1)


def seed_all(*position: int) -> None:
    """Seed the global generators of PyTorch (every device), NumPy and Python for a position in the run."""
    seed = seed_of(*position)
    # Not `torch.manual_seed`, which keeps a traceback of every call for each kind of device that is not used yet.
    torch.default_generator.manual_seed(seed)
    if _on_gpus():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


@cache
def _on_gpus() -> bool:
    return torch.cuda.is_available()


def generator(*position: int) -> torch.Generator:
    """A generator of its own for a position in the run."""
    return torch.Generator().manual_seed(seed_of(*position))


@contextmanager
def own_randomness() -> Iterator[None]:
    """Put the user's generators back as they were."""
    numbers, python = np.random.get_state(), random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(python)
