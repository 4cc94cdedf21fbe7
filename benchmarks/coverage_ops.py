"""Which ATen ops the covered networks use, for the test that each of them has a rule or is frozen on purpose.

    python -m benchmarks.coverage_ops

writes `tests/graph/ops.txt`: one op a line, an asterisk behind those that PyTorch tags as elementwise.
"""

from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from benchmarks.zoo import COLLECTIONS, Network, networks
from sned.errors import ModelError
from sned.files import atomic_path
from sned.graph.example import describe
from sned.graph.ir import Op
from sned.graph.trace import trace_example

OPS = Path(__file__).parent.parent / "tests" / "graph" / "ops.txt"


def main() -> None:
    """Trace every network and write the ops down."""
    found = {op.name: op.pointwise for network in track(networks(COLLECTIONS)) for op in _ops(network)}
    with atomic_path(OPS) as beside:
        beside.write_text("".join(f"{name}{'*' * tagged}\n" for name, tagged in sorted(found.items())))
    print(f"{len(found)} ops")


def _ops(network: Network) -> Iterator[Op]:
    try:
        recorded = trace_example(network.build().eval(), describe(network.example(2))).recorded
    except ModelError as error:
        print(f"{network.name}: {error}")
        return
    for recording in (recorded.main, recorded.trained):
        yield from recording.ops if recording is not None else ()


if __name__ == "__main__":
    main()
