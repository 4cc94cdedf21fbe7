"""The outputs of a network that say something of each input, and how those of many batches are put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sned.graph.ir import Graph


def with_rows(graph: Graph, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Those of a run's outputs that have rows, these first; a loss, a scale, or what compares inputs has none."""
    return [
        output.movedim(rows.axis, 0)
        for output, rows in zip(outputs, graph.rows, strict=True)
        if rows is not None
    ]


def joined(graph: Graph, runs: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The outputs of many runs as those of one, on the CPU: `with_rows` of each, one behind the other."""
    parts = [with_rows(graph, outputs) for outputs in runs]
    return [torch.cat(one).cpu() for one in zip(*parts, strict=True)]
