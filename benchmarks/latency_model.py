"""How near the latencies come that are told before a network is built, and whether budgets are kept.

    python -m benchmarks.latency_model              predicted beside measured: 22 networks, random prunings of each
    python -m benchmarks.latency_model --budgets    asked beside measured, networks × budgets
    python -m benchmarks.latency_model --predict    predict anew what was measured, from the calibration as it is now
    python -m benchmarks.latency_model --summary    what the records so far come to

None of these networks had a part in the calibration, which is of single ops: run `sned devices calibrate host` (and
again with `--threads 2`) first. Each network and its prunings are exported and timed against each other in ONNX
Runtime, in three processes after each other, of which the median counts: now and then a network is a tenth
quicker or slower from one process to the next. The first of the three says how far a single measurement agrees with
that. On a machine that others share, up to nine processes are run, until three of them found the yardstick (an op that
is timed in the same rounds) as quick as any did. So that other programs matter less, a time is the 10th percentile of
its samples (as in the calibration: other work only adds to a time), and with one thread that for which the thread had a
core. Denormal numbers count as zero there: behind the masks of Swin's shifted windows they make a product of
matrices take sixty times as long on Intel's processors (`sned measure` says so of a file). Predictions are

    calibrated   from the calibration alone, nothing of the network was timed; at the pace of the machine in the same
                 rounds, told by the op that the calibration was timed against
    anchored     the same, scaled so that the dense network is told as it was measured: what `sned.prune` goes by
    estimated    from the profile of this machine alone, as for a device that nobody measured

Records are lines of JSON in `--out`; what is there already is not done again, so that a run can be interrupted.
"""

import argparse
import fnmatch
import gc
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

import sned
from benchmarks.networks import CifarResNet
from sned.cli.zoo import from_zoo, import_torchvision
from sned.devices import cost_model, find_device
from sned.devices.calibration import find_calibration
from sned.devices.probe import block_size, yardstick
from sned.devices.timer import SAMPLE_MS, YARDSTICK, runner
from sned.export import feeds
from sned.files import atomic_write_text
from sned.graph import Graph
from sned.measure import denormals_as_zero, measure_onnx
from sned.report.environment import environment
from sned.runtime import open_session
from sned.timing import SETTLE_MS, interleaved, processor_clock

TORCHVISION = (
    "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "shufflenet_v2_x1_0", "shufflenet_v2_x0_5",
    "regnet_y_400mf", "regnet_x_800mf", "densenet121", "convnext_tiny", "swin_t", "vit_b_32", "vgg11_bn", "mnasnet1_0",
)  # fmt: skip

LOWEST, SEED = 0.4, 0
PROCESSES = 3
TRIES, BUSY = 3, 0.03
"""Processes are repeated, up to so often, in which the yardstick took this much longer than in the quickest so far."""

RULED_MS = 10
"""Of a sample of the yardstick at most: it is as long as that of the whole network, since in a short moment a machine
may do nothing else (its clock interrupts it every few milliseconds), in a long one hardly."""

SETTLE_CALLS = 3
"""Calls of a network that are not timed, before each that is: behind fifteen others one call left it up to 9 % slower
than it runs over and over."""

RANKED, FEWEST_RANKED = (0.4, 1.0), 5
"""Of the dense network's latency: prunings between these have to be put in the right order, if they are not too few."""

BUDGETS = (0.5, 0.6, 0.7, 0.8)
BUDGETED = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf",
    "densenet121", "cifar_resnet20", "cifar_resnet56", "minilm",
)  # fmt: skip

Record = dict[str, Any]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A network and how it is called."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]


def subjects() -> dict[str, Subject]:
    """Every network of the benchmark by name."""
    image = partial(torch.randn, 1, 3, 224, 224)
    small = partial(torch.randn, 1, 3, 32, 32)
    named = {name: Subject(partial(from_zoo, "torchvision", name), image) for name in TORCHVISION}
    named["cifar_resnet20"] = Subject(partial(CifarResNet, 3), small)
    named["cifar_resnet56"] = Subject(partial(CifarResNet, 9), small)
    named["minilm"] = Subject(_minilm, lambda: {"input_ids": torch.randint(0, 30_000, (1, 128))})
    return named


def _minilm() -> nn.Module:
    """The architecture of all-MiniLM-L6-v2, with random weights."""
    import_torchvision()  # transformers imports it where it is installed
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model: nn.Module = BertModel(config, add_pooling_layer=False)
    return model


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="such as 'resnet*'; may repeat")
    parser.add_argument("--prunings", type=int, default=15, help="of each network, beside the whole of it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/latency_model.jsonl"))
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument(
        "--seconds", type=float, default=15, help="of measuring a network, in each of its processes"
    )
    parser.add_argument(
        "--old-exporter", action="store_true",
        help="of PyTorch: it writes the same operators of convolutional networks, thirty times faster",
    )  # fmt: skip
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.predict:
        _predict_again(options)
    elif not options.summary:
        work = _budgets if options.budgets else _predictions
        for record in work(options):
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(_line(record), flush=True)
    print(summary(_read(options.out)))


def _read(path: Path) -> list[Record]:
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )


def _chosen(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    patterns = options.only or ["*"]
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


# --- predictions ------------------------------------------------------------------------------------------


def _predictions(options: argparse.Namespace) -> Iterator[Record]:
    """A record for every network and pruning that is not done yet."""
    done = {(r["network"], r["threads"]) for r in _read(options.out) if r["kind"] == "prediction"}
    for name in _chosen(options, subjects()):
        if (name, options.threads) not in done:
            yield from _network(name, options)
            gc.collect()


def _network(name: str, options: argparse.Namespace) -> list[Record]:
    model, example, graph = _traced(name)
    plans = random_plans(graph, options.prunings)
    earlier = [
        r["yardstick_ms"] for r in _read(options.out) if r.get("threads") == options.threads if "pruning" in r
    ]
    times = _measured(model, graph, example, plans, options, quickest=min(earlier, default=float("inf")))
    records = [
        {
            "kind": "prediction", "network": name, "pruning": place, "prunings": options.prunings,
            "threads": options.threads, "measured_ms": float(np.median(times[str(place)])),
            "once_ms": times[str(place)][0], "yardstick_ms": float(np.median(times[YARDSTICK])),
            "machine": environment().machine,
        }
        for place in range(len(plans))
    ]  # fmt: skip
    return _predicted(graph, records)


def _traced(name: str) -> tuple[nn.Module, Any, Graph]:
    torch.manual_seed(SEED)
    subject = subjects()[name]
    model, example = subject.build().eval(), subject.example()
    return model, example, sned.trace(model, example)


def _predict_again(options: argparse.Namespace) -> None:
    """Predict what was measured from the calibration as it is now, and put that in the place of what was there."""
    held = _read(options.out)
    keys = {(r["network"], r["threads"]) for r in held if r["kind"] == "prediction"}
    told = [record for record in held if record["kind"] != "prediction"]
    for name, threads in sorted(keys):
        records = [r for r in _of(held, name) if r["kind"] == "prediction" and r["threads"] == threads]
        if name in _chosen(options, [name]):
            records = _predicted(_traced(name)[2], records)
        told += records
        for record in records:
            print(_line(record), flush=True)
    atomic_write_text(options.out, "".join(json.dumps(record) + "\n" for record in told))


def _predicted(graph: Graph, records: list[Record]) -> list[Record]:
    """The records of one network, with what is predicted of it."""
    threads = records[0]["threads"]
    plans = random_plans(graph, records[0]["prunings"])
    held = find_calibration("host", "onnxruntime", threads)
    assert held is not None, "Run `sned devices calibrate host` first."
    assert held.yardstick_us is not None
    calibrated, estimated = (
        cost_model(graph, find_device("host"), threads=threads, basis=basis)
        for basis in ("calibrated", "estimated")
    )
    pace = 1e3 * records[0]["yardstick_ms"] / held.yardstick_us
    told = replace(calibrated, scale=pace).evaluate(plans).latency_ms
    guessed = estimated.evaluate(plans).latency_ms
    dense = next(record["measured_ms"] for record in records if record["pruning"] == 0)
    return [
        {
            **record, "calibrated_ms": float(told[place]), "anchored_ms": float(told[place] * dense / told[0]),
            "estimated_ms": float(guessed[place]),
        }
        for record in records
        for place in [record["pruning"]]
    ]  # fmt: skip


def random_plans(graph: Graph, count: int) -> Array:
    """Units kept `[1 + count, groups]`: all, then ever less, each group somewhere around the plan's own share."""
    rng = np.random.default_rng(SEED)
    cells = np.array([group.cell_count for group in graph.groups])
    each = np.array([group.size for group in graph.groups]) / cells
    shares = [
        np.clip(rng.normal(level, 0.15, len(each)), 0.1, 1.0) for level in np.linspace(LOWEST, 0.95, count)
    ]
    kept = [np.clip(np.rint(each * share), 1, each) for share in shares]
    return np.asarray(np.array([each, *kept]) * cells, np.float64)


def _measured(
    model: nn.Module,
    graph: Graph,
    example: Any,
    plans: Array,
    options: argparse.Namespace,
    *,
    quickest: float,
) -> dict[str, list[float]]:
    """Milliseconds of each plan's network and of the yardstick, in each of some processes."""
    files, given = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for place, counts in enumerate(plans):
            small = sned.apply(model, plan_of(graph, counts))
            path = Path(folder) / f"{place}.onnx"
            if options.old_exporter:
                torch.onnx.export(small, (example,), str(path), dynamo=False, input_names=["input"])
                given = {"input": example.numpy()}
            else:
                given = dict(feeds(sned.export_onnx(small, example, path), example))
            files[str(place)] = path
        rounds: list[dict[str, float]] = []
        while len(rounds) < PROCESSES * TRIES and len(quiet(rounds, quickest)) < PROCESSES:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                rounds.append(
                    alone.submit(_timed, files, given, options.threads, options.seconds, len(rounds)).result()
                )
    if len(quiet(rounds, quickest)) < PROCESSES:
        print(f"The machine was busy all the while: see how far single measurements agree ({TRIES} tries).")
    chosen = sorted(rounds, key=lambda times: times[YARDSTICK])[:PROCESSES]
    rounds = [times for times in rounds if times in chosen]
    return {name: [times[name] for times in rounds] for name in rounds[0]}


def quiet(rounds: Sequence[Mapping[str, float]], quickest: float) -> list[Mapping[str, float]]:
    """Those in which the yardstick took hardly longer than in the quickest of all, these and earlier ones."""
    limit = (1 + BUSY) * min([quickest, *(times[YARDSTICK] for times in rounds)])
    return [times for times in rounds if times[YARDSTICK] <= limit]


def _timed(
    files: Mapping[str, Path], given: Mapping[str, Any], threads: int, seconds: float, seed: int
) -> dict[str, float]:
    """In a process of its own: one that made networks before runs the same file up to a quarter slower."""
    runners: dict[str, Callable[[], object]] = {
        n: partial(open_session(path, threads=threads).run, None, given) for n, path in files.items()
    }
    rule = runner(yardstick(block_size()), threads)
    calls = max(1, round(min(RULED_MS, _quickest_ms(runners["0"])) / _quickest_ms(rule)))
    rules = [
        f"{YARDSTICK} {n}" for n in files
    ]  # of few rounds, one sample in each may meet a slow moment every time
    runners |= dict.fromkeys(rules, partial(_again_and_again, rule, calls))
    with denormals_as_zero():  # no prediction knows the numbers
        times = interleaved(
            runners, runs=40, threads=threads, min_sample_ms=SAMPLE_MS, max_seconds=seconds,
            settle_ms=SETTLE_MS, settle_calls=SETTLE_CALLS, seed=seed, clock=processor_clock(threads),
        )  # fmt: skip
    quick = {name: latency.p10_ms for name, latency in times.items()}
    return {**quick, YARDSTICK: float(np.median([quick[name] for name in rules])) / calls}


def _quickest_ms(function: Callable[[], object]) -> float:
    return interleaved({"": function}, runs=5)[""].p10_ms


def _again_and_again(function: Callable[[], object], times: int) -> None:
    for _ in range(times):
        function()


def plan_of(graph: Graph, counts: Array) -> sned.Plan:
    """The plan that keeps the first units of every cell."""
    removed = {}
    for group, count in zip(graph.groups, counts, strict=True):
        each = int(count) // group.cell_count
        gone = [u for cell in range(group.cell_count) for u in np.flatnonzero(group.cells == cell)[each:]]
        if gone:
            removed[group.name] = sorted(int(unit) for unit in gone)
    return graph.plan(removed)


# --- budgets ----------------------------------------------------------------------------------------------


def _budgets(options: argparse.Namespace) -> Iterator[Record]:
    """A record for every network and budget that is not done yet."""
    done = {(r["network"], r["budget"], r["threads"]) for r in _read(options.out) if r["kind"] == "budget"}
    for name in _chosen(options, BUDGETED):
        for budget in BUDGETS:
            if (name, budget, options.threads) not in done:
                yield _budget(name, subjects()[name], budget, options.threads)
                gc.collect()


def _budget(name: str, subject: Subject, share: float, threads: int) -> Record:
    """Prune to a share of the latency, and measure both networks once more, in a run of their own."""
    torch.manual_seed(SEED)
    model, example = subject.build().eval(), subject.example()
    asked = sned.Budget(latency_ms=f"{100 * share:g}%", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        result = sned.prune(model, example, budget=asked, out=folder)
        files = {"before": Path(folder) / "dense.onnx", "after": Path(folder) / "model.onnx"}
        exported = sned.export_onnx(model, example, Path(folder) / "again.onnx")
        times = measure_onnx(
            files, dict(feeds(exported, example)), threads=threads, runs=150, max_seconds=30,
            clock=processor_clock(threads),
        )  # fmt: skip
    before, after = times["before"].median_ms, times["after"].median_ms
    predicted = result.report.after.predicted_latency_ms
    return {
        "kind": "budget", "network": name, "budget": share, "threads": threads, "before_ms": before, "after_ms": after,
        "predicted_ms": predicted, "of_asked": after / before / share, "machine": environment().machine,
    }  # fmt: skip


# --- what it comes to -------------------------------------------------------------------------------------


def summary(records: Iterable[Record]) -> str:
    """A paragraph for each kind of record and number of threads."""
    held = list(records)
    parts = []
    for threads in sorted({record["threads"] for record in held}):
        of = [record for record in held if record["threads"] == threads]
        predictions = [record for record in of if record["kind"] == "prediction"]
        budgets = [record for record in of if record["kind"] == "budget"]
        parts += [_told(predictions, threads)] if predictions else []
        parts += [_kept(budgets, threads)] if budgets else []
    return "\n\n".join(parts) or "No records yet."


def _told(records: list[Record], threads: int) -> str:
    names = sorted({record["network"] for record in records})
    lines = [f"{len(records)} predictions, {len(names)} networks, {threads} thread(s)"]
    for which in ("once", "calibrated", "anchored", "estimated"):
        ratio = np.array([record[f"{which}_ms"] / record["measured_ms"] for record in records])
        all_of = [rank_correlation(_of(records, name), which) for name in names]
        near = [rank_correlation(near_dense(_of(records, name)), which) for name in names]
        lines.append(
            f"  {which:10} within 10 % {_within(ratio, 0.1)}, 20 % {_within(ratio, 0.2)}, a factor of 2 "
            f"{(np.abs(np.log2(ratio)) <= 1).mean():6.1%}; median ratio {np.median(ratio):.3f}; least rank correlation "
            f"{_least(all_of)}, from {RANKED[0]} to {RANKED[1]} of the dense latency {_least(near)}"
        )
    return "\n".join(lines)


def _of(records: Iterable[Record], name: str) -> list[Record]:
    return [record for record in records if record["network"] == name]


def near_dense(records: list[Record]) -> list[Record]:
    """One network's prunings between 0.4 and 1.0 of its dense latency; none where they are too few to rank."""
    dense = next((record["measured_ms"] for record in records if record["pruning"] == 0), np.nan)
    near = [record for record in records if RANKED[0] <= record["measured_ms"] / dense <= RANKED[1]]
    return near if len(near) >= FEWEST_RANKED else []


def rank_correlation(records: list[Record], which: str) -> float:
    """Spearman's correlation; nan for none."""
    measured, told = ([record[f"{name}_ms"] for record in records] for name in ("measured", which))
    return float(spearmanr(measured, told).statistic) if records else float("nan")


def _least(ranks: Iterable[float]) -> str:
    known = [rank for rank in ranks if np.isfinite(rank)]
    return f"{min(known):.3f}" if known else "not known"


def _within(ratio: Array, share: float) -> str:
    return f"{(np.abs(ratio - 1) <= share).mean():6.1%}"


def _kept(records: list[Record], threads: int) -> str:
    of_asked = np.array([record["of_asked"] for record in records])
    return (
        f"{len(records)} budgets, {threads} thread(s): at most 1.05 of what was asked {(of_asked <= 1.05).mean():.1%}; "
        f"under 0.85 of it {(of_asked < 0.85).mean():.1%}; from {of_asked.min():.2f} to {of_asked.max():.2f}"
    )


def _line(record: Mapping[str, Any]) -> str:
    if record["kind"] == "budget":
        return f"{record['network']:22} {record['budget']:4.0%} asked, {record['of_asked']:.3f} of it taken"
    ratios = " ".join(
        f"{which} {record[f'{which}_ms'] / record['measured_ms']:5.2f}"
        for which in ("once", "calibrated", "estimated")
    )
    return f"{record['network']:22} {record['pruning']:3} {record['measured_ms']:8.2f} ms  {ratios}"


if __name__ == "__main__":
    main()
