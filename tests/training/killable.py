"""A run to kill: `python -m tests.training.killable FOLDER KIND`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import sned
from sned.training import GradualMasks
from tests.training.networks import digit_net, digits


def shifted(x: torch.Tensor) -> torch.Tensor:
    """Images with noise."""
    return x + 0.1 * torch.rand_like(x)


def train(folder: Path | None, kind: str) -> sned.Tuned:
    """Train on tensors with augmentation and SGD, on a loader with AdamW, or with a teacher whose answers are cached
    and masks that grow; dropout in all."""
    torch.set_num_threads(1)
    data = digits(0, 900)
    loaded, taught = kind == "loader", kind == "taught"
    return sned.finetune(
        digit_net(),
        DataLoader(TensorDataset(*data), 32, shuffle=True) if loaded else data,
        validation=digits(900, 1100),
        augment=shifted if kind == "tensors" else None,
        teacher=digit_net(seed=1) if taught else None,
        distillation={"relations": 1.0, "attention": 1.0} if taught else None,
        parts=[GradualMasks(0.8, updates=9)] if taught else (),
        optimiser="adamw" if loaded else "sgd",
        folder=folder,
        epochs=8,
        batch_size=32,
        learning_rate=0.05,
        save_every=3,
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2])
