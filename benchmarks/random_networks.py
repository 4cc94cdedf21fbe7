"""Thousands of random networks through surgery, each held against the original with what goes set to zero.

    python -m benchmarks.random_networks --cases 10000

Half are convolutional (branches, grouped convolutions, shuffles, splits, views), half run over sequences (attention,
norms, recurrent layers): the strategies of `tests/graph`, whose tests run some dozens of them. Hypothesis draws in
chunks; in each chunk that fails it says the smallest network that does, and the next chunk goes on.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.progress import track

CHUNK = 250
"""Networks drawn from one seed."""

SEEDS = st.integers(0, 10**6)

KINDS = (("cnn", "programs"), ("sequence", "sequences"))
"""Modules of the tests, and the strategies in them."""

NAME = "test_the_pruned_network_is_the_original_with_what_goes_set_to_zero"


def main() -> None:
    """Run the chunks and say how many networks were right."""
    options = _options().parse_args()
    torch.set_num_threads(1)
    start, failures = time.perf_counter(), []
    chunks = list(_chunks(options.cases, options.seed))
    for number, (kind, check) in enumerate(track(chunks, description="random networks")):
        if failure := _failure(check):
            failures.append(f"{kind}, chunk {number}: {failure}")
            print(failures[-1], flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{len(chunks) * CHUNK} networks in {seconds:.0f} s; chunks that failed: {len(failures)}; {torch.__version__=}"
    )


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="how many networks (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk (default: 0)")
    return parser


def _chunks(cases: int, first: int) -> Iterator[tuple[str, Callable[[], None]]]:
    chosen = settings(
        max_examples=CHUNK,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    for number in range(-(-cases // CHUNK)):
        kind, programs = KINDS[number % 2]
        drawn = getattr(import_module(f"tests.graph.random_{kind}"), programs)()
        run = getattr(import_module(f"tests.graph.test_random_{kind}"), NAME).hypothesis.inner_test
        yield kind, seed(first + number)(chosen(given(drawn, SEEDS)(run)))


def _failure(check: Callable[[], None]) -> str:
    """What went wrong with the smallest network of a chunk, or nothing."""
    try:
        with redirect_stdout(StringIO()):
            check()
    except Exception as error:  # noqa: BLE001 (whatever surgery or an oracle raises is the finding)
        notes = " ".join(getattr(error, "__notes__", ()))
        return f"{type(error).__name__}: {error} {notes}"
    return ""


if __name__ == "__main__":
    main()
