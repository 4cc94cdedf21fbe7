"""MLPerf Tiny's ResNet-8 (Keras) on CIFAR-10: pruned without training, and after some epochs of distillation.

    KERAS_BACKEND=tensorflow python -m benchmarks.keras [--speed-up 1.5 2] [--fit 5] [--inputs 1024] [--match 60]
                                                        [--without add] [--out FILE]

Calibration inputs are unlabelled training images; distillation sees 10,000 labelled ones; the test set is read once, at
the end, for every row. `python -m benchmarks.keras_applications` is the benchmark of correctness. The data are read
from SNED_DATA (see `benchmarks/data.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import sned
import sned.keras
from benchmarks.data import DEVIATION, MEAN, cifar10, data_folder
from sned.progress import RichProgress
from sned.report import environment

WEIGHTS = "weights/mlperf_tiny_resnet8.h5"
TRAINING_IMAGES = 10_000
RATE = 1e-3


@dataclass(frozen=True)
class Row:
    """One model: what made it, what it costs, how good it is on the whole test set."""

    name: str
    macs: float
    parameters: int
    accuracy: float
    seconds: float


def images(split: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images `[n, 32, 32, 3]` of 0 to 255, and labels."""
    pixels, labels = cifar10(split)
    return ((pixels.transpose(0, 2, 3, 1) * DEVIATION + MEAN) * 255).astype(np.float32), labels


def accuracy(model: Any, given: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Fraction of images classified right."""
    return float((model.predict(given, batch_size=256, verbose=0).argmax(-1) == labels).mean())


def tuned(small: Any, dense: Any, given: NDArray[np.float32], labels: NDArray[np.int64], epochs: int) -> None:
    """Train the pruned model, in place, to answer as the dense one does."""
    steps = epochs * len(given) // 64
    distiller = sned.keras.Distiller(small, dense, temperature=4.0, weight=0.9)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    distiller.compile(
        keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    flipped = np.concatenate([given, given[:, :, ::-1]])
    twice = np.concatenate([labels, labels])
    order = np.random.default_rng(0).permutation(len(twice))
    for epoch in range(epochs):
        part = order[epoch % 2 :: 2]  # one view of each image an epoch, on average
        distiller.fit(flipped[part], twice[part], batch_size=64, verbose=2)


def rows(options: argparse.Namespace) -> list[Row]:
    """Prune to every speed-up, train, and read the test set."""
    keras.utils.set_random_seed(options.seed)
    dense = keras.models.load_model(data_folder() / WEIGHTS, compile=False)
    train, labels = images("train")
    drawn = np.random.default_rng(options.seed).choice(len(train), options.inputs, replace=False)
    made = [("dense", dense, 1.0, 0.0)]
    before = 0.0
    for speed_up in options.speed_up:
        start = time.perf_counter()
        budget = sned.Budget(macs=f"{100 / speed_up}%")
        result = sned.prune(
            dense,
            train[:2],
            budget=budget,
            calibration=train[drawn],
            match_seconds=options.match,
            without=options.without,
            progress=RichProgress(),
        )
        took = time.perf_counter() - start
        before = result.report.before.macs or 0.0
        share = (result.report.after.macs or 0.0) / before
        made.append((f"sned, {speed_up:g}x fewer MACs", result.model, share, took))
        if options.fit and speed_up > 1.5:
            start = time.perf_counter()
            fitted = keras.models.clone_model(result.model)
            fitted.set_weights(result.model.get_weights())
            tuned(fitted, dense, train[:TRAINING_IMAGES], labels[:TRAINING_IMAGES], options.fit)
            name = f"… and {options.fit} epochs of fit with distillation, {TRAINING_IMAGES:,} images"
            made.append((name, fitted, share, time.perf_counter() - start))
    test, answers = images("test")
    return [
        Row(name, share * before, model.count_params(), accuracy(model, test, answers), seconds)
        for name, model, share, seconds in made
    ]


def main() -> None:
    """Print the table, and write it as JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--speed-up", type=float, nargs="+", default=[1.5, 2.0], help="times fewer MACs")
    parser.add_argument(
        "--fit", type=int, default=5, help="epochs of distillation after a speed-up above 1.5"
    )
    parser.add_argument(
        "--match", type=float, help="seconds of label-free matching after repair; none by default"
    )
    parser.add_argument("--without", nargs="+", default=[], help="layers to leave out, such as add")
    parser.add_argument("--inputs", type=int, default=1024, help="unlabelled calibration images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    found = rows(options)
    where = environment()
    table = Table(
        title=f"ResNet-8, CIFAR-10; Keras {keras.__version__} on {keras.backend.backend()}; {where.machine}"
    )
    for column in ("", "MACs", "parameters", "accuracy", "seconds"):
        table.add_column(column)
    for row in found:
        table.add_row(
            row.name,
            f"{row.macs / 1e6:.1f} M ({found[0].macs / row.macs:.2f}x)",
            f"{row.parameters:,}",
            f"{100 * row.accuracy:.2f} % ({100 * (row.accuracy - found[0].accuracy):+.2f})",
            f"{row.seconds:.0f}",
        )
    Console(width=140).print(table)
    if options.out:
        data = {
            "environment": asdict(where),
            "backend": keras.backend.backend(),
            "rows": [asdict(row) for row in found],
        }
        options.out.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
