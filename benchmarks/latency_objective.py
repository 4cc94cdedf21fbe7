"""Does it pay to search on latency? Accuracy of pruning by latency and by MACs, at the same measured latency.

    python -m benchmarks.latency_objective [--only resnet20] [--share 0.6] [--inputs 1024] [--out FILE.jsonl]

Trained CIFAR-10 networks are pruned, without training, to shares of their measured latency in ONNX Runtime on this
machine; then with a budget of MACs, of which the share is bisected until the result takes as long as the first did.
What is bisected is the latency alone: the test set is read once for each of the two networks, when both are made. Both
are timed with the dense one in one interleaved run. Records are lines of JSON; those that are there already are not
made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sned
from benchmarks.data import cifar10
from benchmarks.networks import NETWORKS, trained
from benchmarks.one_shot import accuracy, batches
from sned.export import feeds
from sned.measure import measure_onnx
from sned.report import environment

SHARES = (0.7, 0.6, 0.5)
STEPS = 6
NEAR = 0.02
"""Relative: two latencies that differ by less are the same."""

EXAMPLE = (1, 3, 32, 32)


@dataclass(frozen=True)
class Pruned:
    """A network, and how long it takes as a fraction of the dense one's time."""

    model: nn.Module
    latency: float
    macs: float


def main() -> None:
    """Make the records that are missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(NETWORKS))
    parser.add_argument("--share", action="append", type=float, help="of the dense latency")
    parser.add_argument("--inputs", type=int, default=1024, help="unlabelled calibration images")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of calibration images")
    parser.add_argument("--out", type=Path, default=Path("out/latency_objective.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, _ = cifar10("train")
    drawn = np.random.default_rng(options.seed).choice(len(train), options.inputs, replace=False)
    for record in _records(options, batches(train[drawn])):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(_line(record), flush=True)


def _records(options: argparse.Namespace, calibration: Sequence[torch.Tensor]) -> Iterator[dict[str, Any]]:
    text = options.out.read_text(encoding="utf-8") if options.out.is_file() else ""
    done = {(record["network"], record["asked"]) for record in map(json.loads, text.splitlines())}
    test, labels = cifar10("test")
    for name in options.only or NETWORKS:
        dense = trained(name)
        for share in options.share or SHARES:
            if (name, share) in done:
                continue
            by_latency = pruned(dense, calibration, sned.Budget(latency_ms=f"{100 * share:g}%"))
            by_macs = _as_slow(dense, calibration, by_latency)
            again = _latencies(dense, [by_latency.model, by_macs.model])
            yield {
                "network": name, "asked": share, "inputs": options.inputs, "dense": accuracy(dense, test, labels),
                "by_latency": accuracy(by_latency.model, test, labels),
                "by_macs": accuracy(by_macs.model, test, labels),
                "latency_by_latency": again[0], "latency_by_macs": again[1],
                "macs_by_latency": by_latency.macs, "macs_by_macs": by_macs.macs, "machine": environment().machine,
            }  # fmt: skip


def pruned(dense: nn.Module, calibration: Sequence[torch.Tensor], budget: sned.Budget) -> Pruned:
    """Prune to a budget, and measure what came out against the dense network."""
    result = sned.prune(dense, torch.zeros(EXAMPLE), budget=budget, calibration=calibration)
    before, after = result.report.before, result.report.after
    assert before.macs is not None
    assert after.macs is not None
    return Pruned(result.model, _latencies(dense, [result.model])[0], after.macs / before.macs)


def _as_slow(dense: nn.Module, calibration: Sequence[torch.Tensor], wanted: Pruned) -> Pruned:
    """The network pruned by MACs whose latency is nearest to, and not above, that of another."""
    low, high, share = 0.3 * wanted.macs, min(1.0, 1.5 * wanted.macs), wanted.macs
    tried: list[Pruned] = []
    for _ in range(STEPS):
        tried.append(pruned(dense, calibration, sned.Budget(macs=f"{100 * share:.4g}%")))
        of_wanted = tried[-1].latency / wanted.latency
        if abs(of_wanted - 1) <= NEAR:
            break
        low, high = (share, high) if of_wanted < 1 else (low, share)
        share = (low + high) / 2
    keeping = [found for found in tried if found.latency <= wanted.latency * (1 + NEAR)]
    if keeping:
        return max(keeping, key=lambda found: found.latency)
    return min(tried, key=lambda found: found.latency)


def _latencies(dense: nn.Module, models: Sequence[nn.Module]) -> list[float]:
    """Median latencies as fractions of the dense network's, all in one interleaved run."""
    with tempfile.TemporaryDirectory() as folder:
        example = torch.zeros(EXAMPLE)
        files = [
            sned.export_onnx(m, example, Path(folder) / f"{i}.onnx") for i, m in enumerate([dense, *models])
        ]
        named = {str(place): file.path for place, file in enumerate(files)}
        times = measure_onnx(named, feeds(files[0], example), runs=200, max_seconds=30)
    return [times[str(place + 1)].median_ms / times["0"].median_ms for place in range(len(models))]


def _line(record: dict[str, Any]) -> str:
    return (
        f"{record['network']:18} asked {record['asked']:.0%}: by latency {record['by_latency']:.2%} at "
        f"{record['latency_by_latency']:.3f}, by MACs {record['by_macs']:.2%} at {record['latency_by_macs']:.3f} "
        f"of the dense latency (dense {record['dense']:.2%})"
    )


if __name__ == "__main__":
    main()
