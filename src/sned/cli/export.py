"""`sned export`: a model as an ONNX file, checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.inputs import load_example, load_model
from sned.cli.options import Example, Json, Model, Weights
from sned.cli.output import progress, show, show_json
from sned.cli.stopping import keeping

if TYPE_CHECKING:
    from rich.table import Table

    from sned.export import Exported


def command(
    model: Model,
    example: Example,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.onnx", help="The file to write.")],
    weights: Weights = None,
    opset: Annotated[
        int | None, typer.Option("--opset", min=18, help="Version of the ONNX operators.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", min=0, help="Largest difference allowed; 1e-4 unless weights are halves."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Export a model to ONNX, and keep the file only if ONNX Runtime gives the outputs that PyTorch gives.

    The batch size is left open where the model allows it. A model that sned pruned is given as it was before,
    with the saved file as its weights.

    [bold]Example:[/bold]

    sned export model.py:make_model --weights out/model.safetensors --example 1,3,32,32 --out small.onnx
    """
    from sned.export import export_onnx

    built, inputs = load_model(model, weights), load_example(example)
    with keeping(out.parent), progress().task("exporting and comparing", total=1) as advance:
        exported = export_onnx(built, inputs, out, tolerance=tolerance, opset_version=opset)
        advance(1)
    if json:
        show_json(_data(exported))
    else:
        show(_table(exported))


def _data(exported: "Exported") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(exported), "path": str(exported.path)}


def _table(exported: "Exported") -> "Table":
    from rich.table import Table

    from sned.report.figures import percent, size

    parity = exported.parity
    agreed = "–" if parity.top1_agreement is None else f"{percent(parity.top1_agreement)} of {parity.rows}"
    batch = "any" if exported.dynamic_batch else f"fixed: {exported.static_because}"
    table = Table(title=str(exported.path), title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for term, value in (
        ("file size", size(exported.size_bytes)),
        ("opset", str(exported.opset)),
        ("inputs", ", ".join(exported.inputs)),
        ("outputs", ", ".join(exported.outputs)),
        ("batch", batch),
        ("largest difference to PyTorch", f"{parity.max_abs_diff:.2g} ({parity.max_rel_diff:.2g} relative)"),
        ("same class", agreed),
        ("compared at batches of", ", ".join(map(str, exported.batches))),
    ):
        table.add_row(term, value)
    return table
