"""Networks on CIFAR-10, pruned without training: sned, and Torch-Pruning to the same MACs in the same run.

    python -m benchmarks.one_shot                                             ResNet-56, 2.11 times fewer MACs
    python -m benchmarks.one_shot --speed-up 2.11 --match-seconds 240         and with label-free matching
    python -m benchmarks.one_shot --latency 50%                               and by latency, beside the same by MACs
    python -m benchmarks.one_shot --parameters 50% --match-seconds 240        half of the parameters
    python -m benchmarks.one_shot --network resnet20 --speed-up 1.5           also: shufflenetv2_x0_5
    python -m benchmarks.one_shot --latency 50% --without auto                and with whole blocks left out too
    python -m benchmarks.one_shot --without layer1.3 layer2.4                 those blocks left out, no widths cut

Calibration inputs are unlabelled training images; the test set is read once, at the end, for every row. Latencies are
medians over interleaved runs in ONNX Runtime. The data are read from SNED_DATA (see `benchmarks/data.py`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

import sned
from benchmarks.data import cifar10
from benchmarks.networks import NETWORKS, trained
from benchmarks.peers import macs, reestimate_batchnorm, torch_pruning
from sned.export import export_onnx, feeds
from sned.measure import measure_onnx
from sned.progress import RichProgress
from sned.report import environment

BATCH = 128


@dataclass(frozen=True)
class Row:
    """One pruned network: what made it, what it costs, how good it is on the whole test set."""

    name: str
    macs: int
    accuracy: float
    latency_ms: float
    seconds: float


def batches(images: NDArray[np.float32]) -> list[torch.Tensor]:
    """Images `[n, 3, 32, 32]` in batches."""
    return list(torch.split(torch.from_numpy(images), BATCH))


def accuracy(model: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Fraction of test images classified right."""
    with torch.no_grad():
        answers = torch.cat([model(batch).argmax(1) for batch in batches(images)])
    return float((answers.numpy() == labels).mean())


def networks(
    options: argparse.Namespace, calibration: Sequence[torch.Tensor], further: Sequence[torch.Tensor]
) -> Iterator[tuple[str, nn.Module, float]]:
    """Every way to prune, with the seconds that it took."""
    dense = trained(options.network)
    example = calibration[0][:1]
    yield "dense", dense, 0.0
    share = 1 / options.speed_up
    if options.without not in ([], ["auto"]):
        yield "those blocks left out", sned.prune(dense, example, without=options.without).model, 0.0
        start = time.perf_counter()
        result = sned.prune(
            dense, example, without=options.without, calibration=calibration, progress=RichProgress()
        )
        yield "those blocks left out, repaired", result.model, time.perf_counter() - start
        return
    budgets = {f"sned, {options.speed_up:g}x fewer MACs": sned.Budget(macs=f"{100 * share}%")}
    if options.parameters:
        budgets = {
            f"sned, {options.parameters} of the parameters": sned.Budget(parameters=options.parameters)
        }
    if options.latency:
        budgets[f"sned, {options.latency} of the latency"] = sned.Budget(latency_ms=options.latency)
    for name, budget in budgets.items():
        ways: list[tuple[str, str | tuple[str, ...], float | None]] = [("", (), None)]
        ways += [(", matched", (), options.match_seconds)] if options.match_seconds else []
        ways += [(", blocks left out too", "auto", None)] if options.without else []
        for how, without, seconds in ways:
            start = time.perf_counter()
            result = sned.prune(
                dense,
                example,
                budget=budget,
                calibration=[*calibration, *further] if seconds else calibration,
                without=without,
                match_seconds=seconds,
                progress=RichProgress(),
            )
            yield f"{name}{how}", result.model, time.perf_counter() - start
    for criterion in ("l1-global", "l2-uniform"):
        try:
            peer = torch_pruning(dense, example, share, criterion=criterion, ignored=["fc"])
        except Exception as error:  # noqa: BLE001 (whatever stops it, the others stand)
            Console().print(f"Torch-Pruning {criterion} could not: {type(error).__name__}: {error}")
            continue
        yield f"Torch-Pruning {criterion}", peer.model, peer.seconds
        reestimate_batchnorm(peer.model, calibration)
        yield f"Torch-Pruning {criterion} + BatchNorm", peer.model, peer.seconds


def main() -> None:
    """Print the table, and write it as JSON where `--out` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet56", choices=sorted(NETWORKS))
    parser.add_argument("--speed-up", type=float, default=2.11, help="times fewer MACs")
    parser.add_argument(
        "--parameters", default="", help="instead prune to this share of the parameters, such as 50%%"
    )
    parser.add_argument(
        "--latency", default="", help="also prune to this share of the measured latency, such as 50%%"
    )
    parser.add_argument(
        "--match-seconds", type=float, default=0.0, help="also with this long of label-free matching"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], help="leave these blocks out instead, or, with auto, some too"
    )
    parser.add_argument("--inputs", type=int, default=1024, help="unlabelled calibration images")
    parser.add_argument(
        "--match-inputs", type=int, default=4096, help="unlabelled images that matching learns from, in all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of calibration images")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    train, _ = cifar10("train")
    test, labels = cifar10("test")
    generator = np.random.default_rng(options.seed)
    drawn = generator.choice(len(train), options.inputs, replace=False)
    others = generator.permutation(np.setdiff1d(np.arange(len(train)), drawn))
    further = others[: max(0, options.match_inputs - options.inputs)]
    made = [
        (name, model, seconds, accuracy(model, test, labels), macs(model, torch.zeros(1, 3, 32, 32)))
        for name, model, seconds in networks(options, batches(train[drawn]), batches(train[further]))
    ]
    with tempfile.TemporaryDirectory() as folder:
        example = torch.zeros(1, 3, 32, 32)
        files = {
            name: export_onnx(m, example, Path(folder) / f"{i}.onnx") for i, (name, m, *_) in enumerate(made)
        }
        first = next(iter(files.values()))
        timed = measure_onnx(
            {n: f.path for n, f in files.items()}, feeds(first, example), runs=200, max_seconds=60
        )
    rows = [Row(name, count, right, timed[name].median_ms, s) for name, _, s, right, count in made]
    where = environment()
    table = Table(
        title=f"{options.network}, CIFAR-10, {len(labels)} test images; {where.machine}, 1 thread, {where.versions}"
    )
    for column in ("", "MACs", "accuracy", "latency (ORT, median)", "seconds"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.macs / 1e6:.1f} M ({rows[0].macs / row.macs:.2f}x)",
            f"{100 * row.accuracy:.2f} %",
            f"{row.latency_ms:.3f} ms ({rows[0].latency_ms / row.latency_ms:.2f}x)",
            f"{row.seconds:.0f}",
        )
    Console(width=140).print(table)
    if options.out:
        options.out.write_text(
            json.dumps({"environment": asdict(where), "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
