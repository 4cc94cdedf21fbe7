"""What the results of `benchmarks.coverage` come to, as text."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sned.report.environment import environment

Record = Mapping[str, Any]

_PACKAGES = ("sned", "torch", "torchvision", "timm", "transformers", "torch-pruning", "numpy", "scipy")


def row(record: Record) -> str:
    """One network in one line."""
    word = "pass" if record["passes"] else "FAIL"
    parts = [
        f"{word} {record['collection']}:{record['name']}",
        f"{seconds(record):.2f} s",
        f"{record.get('parameters_left', math.nan):.3f} left",
        f"{record.get('groups', 0)} groups",
    ]
    if "peer_passes" in record:
        parts.append(f"peer {'pass' if record['peer_passes'] else 'FAIL'} {peer_seconds(record):.2f} s")
    return "  ".join(parts) + (f"\n     {record['error']}" if record.get("error") else "")


def seconds(record: Record) -> float:
    """Trace, groups, plan and apply, verification included."""
    return float(sum(record.get(key, math.nan) for key in ("trace_s", "plan_s", "apply_s")))


def peer_seconds(record: Record) -> float:
    """The peer's build and prune, which verifies nothing."""
    return float(sum(record.get(key, math.nan) for key in ("peer_build_s", "peer_prune_s")))


def summary(records: Sequence[Record]) -> str:
    """A table with a line a collection, times against the peer, and what did not pass."""
    collections = sorted({record["collection"] for record in records})
    head = f"{'':14}{'networks':>9}{'correct':>9}{'pass':>6}{'peer':>6}{'left':>7}{'median s':>10}"
    lines = [_where(), "", head]
    for name in collections:
        lines.append(_line(name, [r for r in records if r["collection"] == name]))
    lines += ["", *_against_peer(records), "", "did not pass:"]
    lines += [f"  {r['collection']}:{r['name']}: {r.get('error', '')}" for r in records if not r["passes"]]
    return "\n".join(lines)


def _where() -> str:
    here = environment(_PACKAGES)
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    return f"{here.machine}, one thread, seed 0; Python {here.python}, {versions}"


def _line(name: str, records: Sequence[Record]) -> str:
    correct = [r for r in records if r.get("correct")]
    passed = sum(r["passes"] for r in records)
    peers = [r["peer_passes"] for r in records if "peer_passes" in r]
    peer = f"{sum(peers)}" if peers else "-"
    left = median(r["parameters_left"] for r in correct) if correct else math.nan
    time = median(seconds(r) for r in correct) if correct else math.nan
    return f"{name:14}{len(records):9}{len(correct):9}{passed:6}{peer:>6}{left:7.3f}{time:10.2f}"


def _against_peer(records: Sequence[Record]) -> list[str]:
    both = [r for r in records if r.get("correct") and r.get("peer_passes")]
    if not both:
        return []
    ours, theirs = sum(map(seconds, both)), sum(map(peer_seconds, both))
    slower = [r for r in both if peer_seconds(r) >= 0.5 and seconds(r) > peer_seconds(r)]
    lines = [
        f"{len(both)} networks that both can do: {ours:.1f} s with verification, Torch-Pruning {theirs:.1f} s"
        f" ({theirs / ours:.2f}x)"
    ]
    lines += [
        f"  slower on {r['name']}: {seconds(r):.2f} s (trace {r['trace_s']:.2f}, apply {r['apply_s']:.2f}), "
        f"Torch-Pruning {peer_seconds(r):.2f} s"
        for r in sorted(slower, key=lambda r: peer_seconds(r) - seconds(r))
    ]
    return lines
