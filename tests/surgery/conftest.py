"""The same random numbers in every test, whichever ran before."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed PyTorch."""
    torch.manual_seed(0)
