"""Which networks can be pruned to half of every group, correctly, without code for any of them; and how fast.

    python -m benchmarks.coverage --set torchvision --set timm --peer
    python -m benchmarks.coverage --only 'swin*' --again
    python -m benchmarks.coverage --summary

Each network is pruned in a process of its own, on one thread and with a time limit; times are seconds of that
thread at work, so that a busy machine does not lengthen them. Every result is a line
appended to `out/coverage.jsonl`, so that an interrupted run goes on where it stopped; of each network
the last line counts.

`benchmarks.coverage_check` says what is checked, `benchmarks.coverage_peer` how Torch-Pruning is set up.
"""

import argparse
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.coverage_summary import row, summary
from benchmarks.zoo import COLLECTIONS, Network, find, networks

RESULTS = Path("out/coverage.jsonl")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE = 60
"""Seconds that a process may take beyond its time limit to start and to say where it hangs."""
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["benchmarks.coverage_preload"]
"""What the server of processes imports once, before it forks one for each network."""


def main() -> None:
    """Prune what the command line names, one network after the other."""
    options = _options().parse_args()
    results: Path = options.out
    if not options.summary:
        wanted = networks(options.set or COLLECTIONS, options.only or ["*"])
        known = latest(results)
        left = [n for n in wanted if _to_do(known.get((n.collection, n.name)), options)]
        print(f"{len(left)} of {len(wanted)} networks to do", flush=True)
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        for network in left:
            record = _in_process(network, peer=options.peer, limit=options.limit)
            _append(results, record)
            print(row(record), flush=True)
    print(summary(list(latest(results).values())))


def latest(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last record of every network in a file of results, by collection and name."""
    lines = results.read_text().splitlines() if results.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {(record["collection"], record["name"]): record for record in records}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", action="append", choices=list(COLLECTIONS), help="which networks; may repeat"
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="such as 'resnet*'; may repeat")
    parser.add_argument(
        "--peer", action="store_true", help="run Torch-Pruning beside it, in the same process"
    )
    parser.add_argument("--again", action="store_true", help="also what the results already hold")
    parser.add_argument("--failed", action="store_true", help="also what did not pass the last time")
    parser.add_argument("--summary", action="store_true", help="only print the table")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"file of results (default: {RESULTS})")
    parser.add_argument(
        "--limit", type=int, metavar="SECONDS", help="for each network (default: its own, 240)"
    )
    return parser


def _to_do(record: Mapping[str, Any] | None, options: argparse.Namespace) -> bool:
    if record is None or options.again:
        return True
    return bool(options.failed and not record["passes"]) or (options.peer and "peer_passes" not in record)


def _append(results: Path, record: Mapping[str, Any]) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _in_process(network: Network, *, peer: bool, limit: int | None) -> dict[str, Any]:
    """Run one network's check in a process of its own, and gather what it wrote."""
    seconds = limit or network.seconds
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        arguments = (network.collection, network.name, place, seconds, peer)
        process = _CONTEXT.Process(target=_child, args=arguments)
        process.start()
        process.join(seconds * (2 if peer else 1) + _GRACE)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        record: dict[str, Any] = {"collection": network.collection, "name": network.name, "passes": False}
        for file in sorted(place.glob("*.json")):
            record |= json.loads(file.read_text())
        if code:
            hung = (place / "stack").read_text()
            stopped = {"error": _ending(code, seconds), "where": _last_frames(hung)}
            prefix = "peer_" if "correct" in record else ""
            record |= {prefix + key: value for key, value in stopped.items()}
    return record


def _ending(code: int, seconds: int) -> str:
    return f"took more than {seconds} s" if code == 1 else f"the process ended with {code}"


def _last_frames(stack: str) -> str:
    """Where a process hung: the frames that `faulthandler` wrote, innermost first, without the folders."""
    lines = [line for line in stack.splitlines() if line.strip().startswith("File ")]
    return " < ".join(line.replace('"', "").split("/")[-1] for line in lines[:12])


def _child(collection: str, name: str, place: Path, seconds: int, peer: bool) -> None:
    """In a process of its own: check, write the record, and then the peer's."""
    import torch

    from benchmarks.coverage_check import Record, check
    from benchmarks.coverage_peer import PeerRecord
    from benchmarks.coverage_peer import peer as prune_with_peer

    torch.set_num_threads(1)
    _warm_up()
    network = find(collection, name)
    record = Record(collection, name)
    _limited(record, lambda: check(network, record), place, seconds)
    if peer:
        other = PeerRecord()
        _limited(other, lambda: prune_with_peer(network, other), place, seconds, prefix="peer_")


def _limited(record: Any, run: Callable[[], None], place: Path, seconds: int, prefix: str = "") -> None:
    """Run with a time limit, keep what it raises, and write the record."""
    with (place / "stack").open("w") as stack:
        faulthandler.dump_traceback_later(seconds, exit=True, file=stack)
        try:
            run()
        except Exception as error:  # noqa: BLE001 (a benchmark of whatever any network raises)
            text = " ".join(str(error).split())
            setattr(record, f"{prefix}error", f"{type(error).__name__}: {text[:600]}")
            if hasattr(record, "where"):
                record.where = " < ".join(_frames(error))
        faulthandler.cancel_dump_traceback_later()
    (place / f"{prefix}record.json").write_text(json.dumps(dataclasses.asdict(record)))


def _frames(error: BaseException) -> Iterator[str]:
    """Function and line of the innermost frames, the cause's where there is one."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb((error.__cause__ or error).__traceback__)
    for frame in reversed(frames[-6:]):
        yield f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def _warm_up() -> None:
    """Trace and prune a tiny network, so that no figure holds the imports."""
    import torch

    import sned

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    graph = sned.trace(model, torch.zeros(2, 4))
    sned.apply(model, graph.plan({graph.groups[0].name: [0]}))


if __name__ == "__main__":
    main()
