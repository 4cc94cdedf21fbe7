"""Zeros inside the weights of ResNet-56 on CIFAR-10, without labels or gradient steps, beside plain magnitude.

    python -m benchmarks.cifar10_zeros --inputs 1024
    python -m benchmarks.cifar10_zeros --match-seconds 120      and with label-free matching, zeros held

Calibration images are drawn from the training set; every test image is read once, at the end, and decides nothing. The
peer is global magnitude over the same tensors to the same number of zeros, with and without BatchNorm re-estimated.
"""

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import sned
from benchmarks.data import cifar10
from benchmarks.networks import trained
from benchmarks.one_shot import accuracy, batches
from benchmarks.peers import reestimate_batchnorm
from sned.progress import RichProgress
from sned.report import environment

ASKED: tuple[tuple[str, float | None], ...] = (
    ("weight", 0.5),
    ("weight", 0.7),
    ("weight", 0.8),
    ("2:4", None),
)
"""Patterns and sparsities of the table."""

MATCHED = 4096
"""Unlabelled images beyond the calibration images that matching learns from."""


def networks(
    dense: nn.Module,
    calibration: Sequence[torch.Tensor],
    further: Sequence[torch.Tensor],
    match_seconds: float | None,
) -> Iterator[tuple[str, float, nn.Module, float]]:
    """Name, share of zeros, network, and the seconds that it took."""
    yield "dense", 0.0, dense, 0.0
    for pattern, sparsity in ASKED:
        sparsify = partial(
            sned.sparsify,
            dense,
            calibration[0][:2],
            pattern=pattern,
            sparsity=sparsity,
            progress=RichProgress(),
        )
        start = time.perf_counter()
        sparse = sparsify(calibration=calibration)
        yield f"sned, {pattern}", sparse.sparsity, sparse.model, time.perf_counter() - start
        if match_seconds:
            start = time.perf_counter()
            matched = sparsify(calibration=[*calibration, *further], match_seconds=match_seconds)
            yield f"sned, {pattern}, matched", matched.sparsity, matched.model, time.perf_counter() - start
        if pattern != "weight":
            continue
        plain = by_magnitude(dense, list(sparse.zeros), sparse.sparsity)
        yield "magnitude", sparse.sparsity, plain, 0.0
        again = copy.deepcopy(plain)
        reestimate_batchnorm(again, calibration)
        yield "magnitude + BatchNorm", sparse.sparsity, again, 0.0


def by_magnitude(dense: nn.Module, names: Sequence[str], sparsity: float) -> nn.Module:
    """The smallest weights of all named tensors become zero."""
    thin = copy.deepcopy(dense)
    weights = [thin.get_parameter(name) for name in names]
    every = torch.cat([weight.detach().abs().flatten() for weight in weights])
    limit = every.kthvalue(max(round(sparsity * len(every)), 1)).values
    with torch.no_grad():
        for weight in weights:
            weight.mul_(weight.abs() > limit)
    return thin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1024, help="unlabelled calibration images")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of calibration images")
    parser.add_argument("--match-seconds", type=float, help="also with this long of label-free matching")
    options = parser.parse_args()
    train, _ = cifar10("train")
    drawn = np.random.default_rng(options.seed).choice(len(train), MATCHED + options.inputs, replace=False)
    calibration, further = (batches(train[part]) for part in np.split(drawn, [options.inputs]))
    made = list(networks(trained("resnet56"), calibration, further, options.match_seconds))
    test, labels = cifar10("test")
    where = environment()
    table = Table(title=f"ResNet-56, CIFAR-10, {len(labels)} test images; {where.machine}, {where.versions}")
    for column in ("", "zeros", "accuracy", "seconds"):
        table.add_column(column)
    for name, zeros, model, seconds in made:
        table.add_row(name, f"{zeros:.1%}", f"{100 * accuracy(model, test, labels):.2f} %", f"{seconds:.0f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
