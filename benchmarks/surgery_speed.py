"""How long trace, groups, plan and surgery take, verification included: against Torch-Pruning, and as networks grow.

    python -m benchmarks.surgery_speed                  torchvision's 80 classifiers, beside Torch-Pruning
    python -m benchmarks.surgery_speed --curve          a residual network of 300 to 10,000 ops
    python -m benchmarks.surgery_speed --llama          Llama 3 with 8 billion parameters, none of which has a value

Times are seconds of one thread's processor time, the better of two runs of each (the first run of a process also loads
code). Both remove half of every group by the norm of the weights. Torch-Pruning builds its graph and prunes in place;
sned also makes a copy, and runs it beside the recorded ops at two batch sizes.
"""

import argparse
import gc
import resource
import time
from statistics import fmean

import torch
from torch import Tensor, nn

import sned
from benchmarks.coverage_peer import PeerRecord
from benchmarks.coverage_peer import peer as prune_with_peer
from benchmarks.zoo import Network, networks
from sned.cli.zoo import import_torchvision

RUNS = 2
MEMORY = 16 << 30
"""Bytes of address space; the peer needs more than there is for some networks with attention."""

CURVE = (35, 140, 570, 1140)
"""Residual blocks of the networks on the curve: nine ops each."""

MATTERS = 0.5
"""Seconds of the peer from which on a single network is compared."""


def main() -> None:
    """Time what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curve", action="store_true", help="time against the number of ops")
    parser.add_argument("--llama", action="store_true", help="a language model of 8 billion parameters")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="such as 'resnet*'; may repeat")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.curve:
        curve()
    elif options.llama:
        llama()
    else:
        against_peer(options.only or ["*"])


def against_peer(patterns: list[str]) -> None:
    """A line for every network that both can do, and the sums."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    mine, theirs, slower, only_sned = [], [], [], 0
    for network in networks(["torchvision"], patterns):
        own = min(_own(network) for _ in range(RUNS))
        try:
            other = min(_peer(network) for _ in range(RUNS))
        except Exception as error:  # noqa: BLE001 (the peer raises what it raises)
            only_sned += 1
            print(f"{network.name:24} {own:7.2f}       -  {type(error).__name__}", flush=True)
            continue
        mine.append(own)
        theirs.append(other)
        print(f"{network.name:24} {own:7.2f} {other:7.2f}  {other / own:6.2f}", flush=True)
        if own > other >= MATTERS:
            slower.append(network.name)
    print(
        f"{len(mine)} networks that both can do: sned {sum(mine):.1f} s, Torch-Pruning {sum(theirs):.1f} s, "
        f"{sum(theirs) / sum(mine):.2f} times as long; mean {fmean(mine):.2f} s; {only_sned} that the peer cannot.\n"
        f"Slower where the peer takes {MATTERS} s or more: {', '.join(slower) or 'none'}"
    )


def _own(network: Network) -> float:
    model, inputs = network.build().eval(), network.example(2)
    gc.collect()
    start = time.thread_time()
    graph = sned.trace(model, inputs)
    sned.apply(model, sned.plan(graph, sparsity=0.5))
    return time.thread_time() - start


def _peer(network: Network) -> float:
    record = PeerRecord()
    gc.collect()
    prune_with_peer(network, record)
    if not record.peer_passes:
        raise AssertionError(record.peer_error or "nothing was removed")
    return record.peer_build_s + record.peer_prune_s


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b, self.m = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))


def curve() -> None:
    """Time against the number of ops."""
    for depth in (CURVE[0], *CURVE):  # once to load the code
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(_Block(16) for _ in range(depth))).train(
            False
        )
        start = time.thread_time()
        graph = sned.trace(model, torch.randn(2, 3, 8, 8))
        sned.apply(model, sned.plan(graph, sparsity=0.5))
        spent, count = time.thread_time() - start, len(graph.ops)
        print(f"{count:6} ops {spent:7.2f} s {1e3 * spent / count:6.2f} ms an op", flush=True)


def llama() -> None:
    """Trace and plan on the meta device; there are no weights to cut."""
    import_torchvision()  # transformers imports it
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).train(False)
    before = _peak()
    start = time.perf_counter()
    graph = sned.trace(model, {"input_ids": torch.randint(0, 100, (2, 16)), "use_cache": False})
    plan = graph.plan({group.name: range(group.size // 2) for group in graph.groups if group.cell_count == 1})
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    print(
        f"{parameters:.1f} billion parameters, {len(graph.ops)} ops, {len(graph.groups)} groups: traced and planned in "
        f"{seconds:.1f} s, {(_peak() - before) / 1e9:.2f} GB more at the peak ({_peak() / 1e9:.2f} GB in all); {plan}"
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
