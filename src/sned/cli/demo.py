"""`sned demo`: the whole job on a network that is trained on the spot."""

from pathlib import Path
from typing import Annotated

import typer

from sned.cli.options import Json, Threads
from sned.cli.output import progress, say
from sned.cli.prune import show_report
from sned.cli.stopping import keeping

_CALIBRATED_ON = 192


def command(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where the models and the report go.")
    ] = Path("out/demo"),
    latency_ms: Annotated[
        str, typer.Option("--latency-ms", metavar="AMOUNT", help="What may remain of the latency.")
    ] = "50%",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Train a small residual network on handwritten digits, then prune it to half of its latency on this
    machine.

    The network is trained once and kept for the next time. It is cut to the budget with the help of
    unlabelled images, repaired without training, verified, exported, and timed against the original in ONNX
    Runtime.

    [bold]Example:[/bold]

    sned demo --latency-ms 30% --out demo/
    """
    import torch

    from sned.demo import accuracy, digits, trained_network
    from sned.devices import Budget
    from sned.pipeline import prune

    asked = Budget(latency_ms=latency_ms, threads=threads)
    shown = progress()
    data = digits()
    images = torch.from_numpy(data.train.images[:_CALIBRATED_ON].copy())
    with keeping(out):
        network = trained_network(shown)
        result = prune(
            network,
            images[:1],
            budget=asked,
            calibration=torch.split(images, 64),
            evaluate=lambda model: accuracy(model, data.test.images, data.test.labels),
            out=out,
            progress=shown,
        )
    if not json:
        say(f"Accuracy is that on {len(data.test)} images that no step has seen.")
    show_report(result.report, out, as_json=json)
