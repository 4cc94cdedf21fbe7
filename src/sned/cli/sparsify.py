"""`sned sparsify`: zeros inside the weights of a model of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from sned.cli.inputs import load_batches, load_example, load_model
from sned.cli.options import Example, Json, Model, Weights
from sned.cli.output import check_out, progress, say, show, show_json
from sned.cli.stopping import keeping


def command(
    model: Model,
    example: Example = None,
    weights: Weights = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            "-c",
            metavar="FILE:NAME",
            help="Batches of inputs, without labels, to study the network on: file.py:batches.",
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Share of the weights that become zero: 0.7.")
    ] = None,
    pattern: Annotated[
        str, typer.Option("--pattern", help="weight, N:M such as 2:4, or blocks of outputs x inputs: 1x4.")
    ] = "weight",
    match_seconds: Annotated[
        float | None,
        typer.Option(
            "--match-seconds",
            metavar="SECONDS",
            help="After that, spend this long matching the original's answers on the calibration inputs.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The file to write: .safetensors, or .keras of a Keras model."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Put zeros into the weights of a model; the others answer for them, without labels or training.

    Zeros make a file smaller once it is compressed; few runtimes are faster for them. For a model that is smaller
    and faster everywhere use [bold]sned prune[/bold].

    [bold]Example:[/bold]

    sned sparsify model.py:make_model -w model.pt -e 1,3,32,32 -c model.py:batches --sparsity 0.7 --out thin.safetensors
    """
    from sned.repair import sparsify
    from sned.surgery import save
    from sned.surgery.keras import is_keras

    built = load_model(model, weights)
    inputs = load_example(example, built)
    if out is not None:
        check_out(out, ".keras" if is_keras(built) else ".safetensors")
    batches = load_batches(calibration) if calibration else None
    with keeping(out.parent if out else None):
        sparse = sparsify(
            built,
            inputs,
            sparsity=sparsity,
            pattern=pattern,
            calibration=batches,
            match_seconds=match_seconds,
            progress=progress(),
        )
        if out is not None:
            save(sparse.model, out)
    if json:
        show_json({"sparsity": sparse.sparsity, "divergence": sparse.divergence, "zeros": dict(sparse.zeros)})
    else:
        show(sparse.note)
    say(
        f"The masked model is in {out}." if out else "Nothing was written. Give --out FILE to keep the model."
    )
