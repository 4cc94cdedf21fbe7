"""CIFAR-10 after pruning: fine-tuning alone, with a teacher, and Torch-Pruning's network with its own recipe.

    python -m benchmarks.finetune                                    # CPU: ResNet-20 at 2x, 10 epochs of 10,000 images
    python -m benchmarks.finetune --images 2500 --precision bf16     # the same within minutes
    python -m benchmarks.finetune --network resnet56 --speed-up 2.13 2.57 --epochs 100 --images 0 --rate 0.02 \\
        --ways plain distilled "distilled inside" peer --runs out/finetune    # a GPU: the whole table, hours
    python -m benchmarks.finetune --overhead                         # the loop against a bare PyTorch loop

All training images are held on the device, cropped and flipped there. The last epoch counts, not the best, and the
test set chooses nothing. With `--runs` a killed benchmark goes on where it was. The data are read from
SNED_DATA (see `benchmarks/data.py`).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sned
from benchmarks.data import cifar10
from benchmarks.networks import trained
from benchmarks.peers import torch_pruning
from sned.files import atomic_write_text
from sned.progress import RichProgress
from sned.report import environment

CALIBRATION = 1024
"""Unlabelled training images that sned prunes and repairs with."""

EXAMPLE = torch.zeros(1, 3, 32, 32)


@dataclass(frozen=True)
class Row:
    """One trained network: how it was made, and its accuracy on images never trained on, before and after training."""

    way: str
    speed_up: float
    seed: int
    before: float
    after: float
    seconds: float


def crop_and_flip(images: Tensor) -> Tensor:
    """Shift each image by up to four pixels over black borders, and mirror half of them; `[n, c, h, w]`.

    What is returned lies in memory with the channels last, which convolutions take faster.
    """
    n, _, height, width = images.shape
    device = images.device
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, n, 1), device=device)
    rows = down + torch.arange(height, device=device)
    columns = right + torch.arange(width, device=device)
    columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns, columns.flip(1))
    which = torch.arange(n, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction classified right."""
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(batch).argmax(1) for batch in torch.split(images, 500)])
    return float((answers == labels).double().mean())


def steps_down(done: float) -> float:
    """Torch-Pruning's schedule: a tenth from 60 % on, a hundredth from 80 %."""
    return 1.0 if done < 0.6 else 0.1 if done < 0.8 else 0.01


def pruned_by_sned(network: str, speed_up: float, images: Tensor, runs: Path | None) -> nn.Module:
    """The dense network at its budget, repaired; read back where it was made before."""
    path = None if runs is None else runs / f"{network}-{speed_up:g}.safetensors"
    if path is not None and path.is_file():
        held: nn.Module = sned.load(trained(network), path)
        return held
    result = sned.prune(
        trained(network),
        EXAMPLE,
        budget=sned.Budget(macs=f"{100 / speed_up}%"),
        calibration=list(torch.split(images[:CALIBRATION], 128)),
        progress=RichProgress(),
    )
    if path is not None:
        sned.save(result.model, path)
    small: nn.Module = result.model
    return small


def ways(options: argparse.Namespace, dense: nn.Module) -> dict[str, dict[str, Any]]:
    """What differs between the ways to train."""
    shared = {"label_smoothing": 0.0, "learning_rate": options.rate, "precision": options.precision}
    inside = sned.Distillation(features=options.features)
    recipe = {"optimiser": "sgd", "learning_rate": 0.01, "warmup": 0.0, "schedule": steps_down, "ema": 0.0}
    return {
        "plain": shared,
        "distilled": shared | {"teacher": dense},
        "distilled inside": shared | {"teacher": dense, "distillation": inside},
        "peer": recipe | {"label_smoothing": 0.0, "precision": options.precision},
    }


def trained_row(
    options: argparse.Namespace,
    way: str,
    speed_up: float,
    seed: int,
    data: dict[str, tuple[Tensor, Tensor]],
    rows: list[Row],
) -> Row:
    """Prune, train, and look at the test set once after, and before where no row tells; read back what was done."""
    folder = options.runs / f"{options.network}-{speed_up:g}-{way}-{seed}" if options.runs else None
    done = None if folder is None else folder / "row.json"
    if done is not None and done.is_file():
        return Row(**json.loads(done.read_text(encoding="utf-8")))
    dense = trained(options.network)
    images, labels = data["train"]
    if way == "peer":
        small = torch_pruning(dense, EXAMPLE, 1 / speed_up, criterion="l1-global", ignored=["fc"]).model
    else:
        small = pruned_by_sned(options.network, speed_up, images, options.runs)
    tuned = sned.finetune(
        small,
        (images, labels),
        augment=crop_and_flip,
        recipe={"epochs": options.epochs, "batch_size": options.batch, "seed": seed, "keep": "last"},
        folder=folder,
        progress=RichProgress(),
        **ways(options, dense)[way],
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judged = tuple(tensor.to(device) for tensor in data["judged"])
    same = [row.before for row in rows if (row.way == "peer", row.speed_up) == (way == "peer", speed_up)]
    before = same[0] if same else accuracy(small.to(device), *judged)
    after = accuracy(tuned.model.to(device), *judged)
    row = Row(way, speed_up, seed, before, after, sum(epoch.seconds for epoch in tuned.history))
    if done is not None:
        atomic_write_text(done, json.dumps(asdict(row)))
    return row


def overhead(
    options: argparse.Namespace,
    small: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loader: bool,
    rounds: int = 5,
) -> dict[str, float]:
    """Seconds a step of `sned.finetune` and of a loop written out, in turns; medians over rounds.

    Both draw batches from tensors in memory, or from a `DataLoader`, crop and flip them, and make a step of SGD with
    Nesterov's momentum. The whole call is timed, so copying the network and the last bookkeeping count against
    `sned.finetune`. Without a GPU it is the time of the CPU that counts, all threads together, so that others on the
    machine do not.
    """
    steps = options.steps
    images, labels = images[: steps * options.batch], labels[: steps * options.batch]
    given = {
        "epochs": 1,
        "batch_size": options.batch,
        "ema": 0.0,
        "label_smoothing": 0.0,
        "learning_rate": 0.01,
        "precision": "no",
    }

    loaded = DataLoader(TensorDataset(images, labels), options.batch, shuffle=True)

    def ours() -> None:
        sned.finetune(
            small, loaded if loader else (images, labels), augment=crop_and_flip, optimiser="sgd", **given
        )

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def bare() -> None:
        model = copy.deepcopy(small).to(device).train()
        optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
        for x, y in loaded if loader else drawn(images.to(device), labels.to(device), options.batch):
            optimiser.zero_grad(set_to_none=True)
            answers = model(crop_and_flip(x.to(device)))
            nn.functional.cross_entropy(answers, y.to(device)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    taken: dict[str, list[float]] = {"sned": [], "bare": []}
    for _ in range(rounds + 1):
        for name, run in (("sned", ours), ("bare", bare)):
            taken[name].append(_seconds(run) / steps)
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    ratios = [a / b for a, b in zip(taken["sned"][1:], taken["bare"][1:], strict=True)]
    return {**medians, "ratio": statistics.median(ratios)}


def drawn(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in an order drawn at random."""
    for rows in torch.split(torch.randperm(len(labels), device=labels.device), size):
        yield images[rows], labels[rows]


def _seconds(run: Callable[[], None]) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    run()
    return clock() - start


def test_set() -> tuple[Tensor, Tensor]:
    """All test images and their classes."""
    images, labels = cifar10("test")
    return torch.from_numpy(images), torch.from_numpy(labels)


def show(rows: list[Row], options: argparse.Namespace, dense: float) -> None:
    """Print the mean and the spread over seeds of every way and speed-up."""
    where = environment()
    title = f"{options.network}, {100 * dense:.2f} % dense; {options.epochs} epochs of {options.images or 'all'} images"
    title += (
        f", forward pass in {options.precision}; judged by {options.judged or 'all'} images, {options.judge}"
    )
    table = Table(title=f"{title}; {where.machine}, {where.versions}")
    for column in ("", "fewer MACs", "pruned", "trained: mean", "each seed", "seconds"):
        table.add_column(column)
    for way, speed_up in dict.fromkeys((row.way, row.speed_up) for row in rows):
        found = [row for row in rows if (row.way, row.speed_up) == (way, speed_up)]
        table.add_row(
            way,
            f"{speed_up:g}x",
            f"{100 * statistics.mean(row.before for row in found):.2f} %",
            f"{100 * statistics.mean(row.after for row in found):.2f} %",
            ", ".join(f"{100 * row.after:.2f}" for row in found),
            f"{statistics.mean(row.seconds for row in found):.0f}",
        )
    Console(width=140).print(table)


def main() -> None:
    """Print the table, and write it as JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--network", default="resnet20", choices=["resnet20", "resnet56", "shufflenetv2_x0_5"]
    )
    parser.add_argument("--speed-up", type=float, nargs="+", default=[2.0], help="times fewer MACs")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=10_000, help="training images; 0 for all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.002, help="peak learning rate of sned's ways")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "no", "bf16"], help="of every way's forward pass"
    )
    parser.add_argument(
        "--features", type=float, default=1.0, help="weight of features in 'distilled inside'"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--ways", nargs="+", default=["plain", "distilled"], help="also: 'distilled inside', peer"
    )
    parser.add_argument("--runs", type=Path, help="folder of checkpoints, to go on from")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--overhead", action="store_true", help="time the loop instead")
    parser.add_argument("--steps", type=int, default=30, help="of each timed loop")
    parser.add_argument(
        "--judge", choices=["test", "held-out"], default="test",
        help="held-out: training images after those trained on, to choose settings by",
    )  # fmt: skip
    parser.add_argument("--judged", type=int, default=0, help="images to judge by; 0 for all")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    images, labels = (torch.from_numpy(array) for array in cifar10("train"))
    count = options.images or len(labels)
    data = {"train": (images[:count], labels[:count])}
    if options.overhead:
        dense = trained(options.network)
        small = sned.apply(dense, sned.plan(sned.trace(dense, EXAMPLE), sparsity=0.3))
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        for name, model in (
            (f"{options.network} without 30 % of its units", small),
            ("a linear layer", linear),
        ):
            for loader in (False, True):
                told = overhead(options, model, images, labels, loader=loader)
                print(f"{name}, batches of {options.batch} from {'a loader' if loader else 'memory'}: "
                      f"{1000 * told['sned']:.2f} ms a step, {1000 * told['bare']:.2f} ms in a bare loop, median ratio "
                      f"{told['ratio']:.3f}")  # fmt: skip
        return
    given = (images[count:], labels[count:]) if options.judge == "held-out" else test_set()
    judged = slice(options.judged or None)
    data["judged"] = (given[0][judged], given[1][judged])
    rows: list[Row] = []
    for seed in options.seeds:
        for speed_up in options.speed_up:
            for way in options.ways:
                rows.append(trained_row(options, way, speed_up, seed, data, rows))
                print(rows[-1], flush=True)
    dense = trained(options.network)
    show(rows, options, accuracy(dense, *data["judged"]))
    if options.out:
        options.out.write_text(
            json.dumps(
                {"environment": asdict(environment()), "rows": [asdict(row) for row in rows]}, indent=1
            )
        )


if __name__ == "__main__":
    main()
