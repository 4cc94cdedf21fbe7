"""A report of a run that might have been: made-up figures, to test how figures are shown."""

import math
from dataclasses import replace

import pytest

from sned.graph.ir import Frozen
from sned.report import Asked, Check, Curve, Environment, GroupLoss, LayerLoss, Point, Report, State
from sned.timing import Latency

STAGES = ((64, 0.9, 20.0), (128, 0.62, 11.0), (192, 0.35, 7.0))


def made_up() -> Report:
    groups, layers = [], []
    for stage, (width, keep, cost) in enumerate(STAGES, 1):
        for block in range(2):
            for conv in (1, 2):
                name = f"stage{stage}.{block}.conv{conv}"
                kept = int(width * (keep - 0.1 * block + 0.05 * conv))
                groups.append(GroupLoss(name, width, kept, 0.12 / stage, 0.11 / stage, 0.004 * block * stage))
                fraction = (kept / width) ** 1.5
                layers.append(
                    LayerLoss(
                        name, "conv", cost / 90, cost * fraction / 90, cost * 6e5, cost * 6e5 * fraction
                    )
                )
    points = tuple(
        Point(2.0 * x, 0.99 - 0.9 * math.exp(-9 * x), chosen=x == 0.5)
        for x in (0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1)
    )
    return Report(
        asked=Asked(
            model="ResidualCNN",
            example="1 × 1 × 32 × 32 float32",
            budget={"latency_ms": "50%"},
            limits={"latency_ms": 1.02},
            device="host",
            runtime="onnxruntime",
            batch=1,
            threads=1,
            calibration="512 inputs",
            compared="102 inputs that repair held out",
            accuracy="evaluate, on 450 held-out images",
        ),
        before=State(0.9867, 1.0, Latency(2.04, 2.01, 2.13, 200, 1), 1.98, 57_200_000, 1_412_000, 5_680_000),
        after=State(0.9823, 0.9912, Latency(1.0, 0.99, 1.04, 200, 1), 0.97, 25_100_000, 690_400, 2_790_000),
        environment=Environment(
            "Example CPU 9000 <8 cores>",
            8,
            "Linux x86_64",
            "3.11.7",
            {"sned": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.0"},
            "2026-11-20T12:00:00+00:00",
        ),
        groups=tuple(groups),
        layers=tuple(layers),
        frozen=(Frozen("head", 10, "output", "", "these are the outputs of the model"),),
        curve=Curve("agreement with the dense network before repair", points),
        checks=(
            Check("Surgery against replay", True, "Largest difference of any output, batch 2.", 3e-7, 1e-4),
            Check(
                "ONNX against PyTorch", True, "Largest difference of any output, batches 1 and 3.", 2e-7, 1e-4
            ),
        ),
        notes=(
            "Knapsack over the cost of each group, in steps of 8 channels.",
            "Repaired 15 of 15 consumers.",
        ),
        seconds={"trace": 0.41, "measure ops": 8.2, "repair": 2.05},
    )


@pytest.fixture
def report() -> Report:
    return made_up()


@pytest.fixture
def noisy_report(report: Report) -> Report:
    return replace(report, after=replace(report.after, latency=Latency(1.0, 0.9, 1.6, 40, 2)))
