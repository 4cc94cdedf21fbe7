"""The small networks that sned must prune without per-model code, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Maker = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
NETWORKS: dict[str, Maker] = {}


def network(maker: Maker) -> Maker:
    """Register a maker of (module, inputs) under the name of its function."""
    NETWORKS[maker.__name__] = maker
    return maker
