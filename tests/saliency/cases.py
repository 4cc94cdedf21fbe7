"""Networks with what it takes to score them, made once a test session."""

from __future__ import annotations

from functools import cache

import torch

from sned.calibration import calibrate
from sned.graph.trace import state_of, trace
from sned.saliency import Evidence
from tests.graph.networks import NETWORKS

NAMES = (
    "residual", "dense", "grouped", "depthwise", "batch_norm", "group_norm", "multihead_attention",
    "fused_qkv", "lstm", "tied_weights", "shared_twice", "auxiliary",
)  # fmt: skip
"""Shortcuts, concatenation, cells, normalisations, heads, recurrence, weights read twice or in training only."""


@cache
def evidence(name: str) -> Evidence:
    """Evidence with a calibration on 32 random inputs."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    model.eval()
    graph = trace(model, inputs)
    calibration = calibrate(graph, state_of(model), None, limit=32)
    return Evidence(graph, state_of(model), calibration)
