"""`sned export`: a model as the file of a runtime, checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.inputs import load_batches, load_evaluate, load_example, load_model
from sned.cli.options import Example, Json, Model, Threads, Weights
from sned.cli.output import progress, show, show_json
from sned.cli.stopping import keeping

if TYPE_CHECKING:
    from rich.table import Table

    from sned.export import Exported


def command(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help=".onnx, .tflite, .mlpackage, .pte or .xml, as the runtime has it; a folder for savedmodel.",
        ),
    ],
    example: Example = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            "-t",
            metavar="RUNTIME",
            help="onnx, litert, coreml, executorch or openvino; savedmodel of a Keras model.",
        ),
    ] = "onnx",
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            "-q",
            metavar="int8|int8-dynamic|fp16",
            help="Coarser numbers; int8 fits real inputs with --calibration.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration", "-c", metavar="FILE:NAME", help="Batches of inputs without labels, for int8."
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="FILE:NAME",
            help="A function of the model, higher is better; asked about the file too.",
        ),
    ] = None,
    sparse: Annotated[
        bool | None,
        typer.Option(
            "--sparse/--no-sparse",
            help="Zeros in the form that the runtime gains from; by itself where it gains.",
        ),
    ] = None,
    weights: Weights = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="iOS17", help="Oldest system that must take a Core ML package."),
    ] = None,
    channels_first: Annotated[
        bool, typer.Option("--channels-first", help="LiteRT: images stay \\[batch, channels, height, width].")
    ] = False,
    dynamic_batch: Annotated[
        bool | None,
        typer.Option(
            "--dynamic-batch/--fixed-batch",
            help="Batches of any size, or the example's; by itself what can be had.",
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", min=18, help="Version of the ONNX operators.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, help="Largest difference allowed; 1e-4 in 32 bits."),
    ] = None,
    threads: Threads = 1,
    runs: Annotated[
        int, typer.Option("--runs", min=0, help="Interleaved runs to time; 0 times nothing.")
    ] = 50,
    json: Json = False,
) -> None:
    """Export a model to a runtime's file, and keep the file only if it gives the outputs that PyTorch gives.

    The file is read back in its own runtime (Core ML: evaluated from its saved graph and weights) and compared on
    the example, on fresh inputs and on calibration inputs. A model that sned pruned is given as it was before, with
    the saved file as its weights.

    [bold]Examples:[/bold]

    sned export model.py:make_model --weights out/model.safetensors --example 1,3,32,32 --out small.onnx

    sned export model.py:make_model -e 1,3,224,224 --to litert --quantize int8 -c model.py:batches -o small.tflite

    sned export small.keras -e 1,32,32,3 --to savedmodel -o small
    """
    from sned.export import export

    built = load_model(model, weights)
    inputs = load_example(example, built)
    with keeping(out.parent), progress().task("exporting and comparing", total=1) as advance:
        exported = export(
            built,
            inputs,
            out=out,
            to=to,
            quantize=quantize,
            calibration=load_batches(calibration) if calibration else None,
            evaluate=load_evaluate(evaluate) if evaluate else None,
            sparse=sparse,
            tolerance=tolerance,
            opset=opset,
            system=system,
            channels_last=not channels_first,
            dynamic_batch=dynamic_batch,
            runs=runs,
            threads=threads,
        )
        advance(1)
    if json:
        show_json(_data(exported))
    else:
        show(_table(exported))


def _data(exported: "Exported") -> dict[str, Any]:
    """All but how the file is called from Python, in which there may be any object."""
    from dataclasses import asdict, replace

    from sned.export.calls import Call

    told = {**asdict(replace(exported, call=Call())), "path": str(exported.path)}
    del told["call"]
    return told


def _table(exported: "Exported") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from sned.report import deployment
    from sned.report.deployments import deployment_row
    from sned.report.figures import NOTHING

    row, parity = deployment_row(deployment(exported)), exported.parity
    agreed = row.agreement if parity.top1_agreement is None else f"{row.agreement} of {parity.rows}"
    batch = "any" if exported.dynamic_batch else f"fixed at {exported.batch}: {exported.static_because}"
    table = Table(title=escape(str(exported.path)), title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    shown = [
        ("runtime", row.runtime),
        ("file size", row.size),
        ("opset", str(exported.opset or "")),
        ("inputs", ", ".join(exported.inputs)),
        ("outputs", ", ".join(exported.outputs)),
        ("batch", batch),
        (
            "largest difference to the model",
            f"{parity.max_abs_diff:.2g} ({parity.max_rel_diff:.2g} relative)",
        ),
        ("relative error of all outputs", row.error),
        ("same class", agreed),
        ("compared at batches of", ", ".join(map(str, exported.batches))),
        ("accuracy", "" if exported.accuracy is None else row.accuracy),
        (
            "latency, median",
            f"{row.latency} ({row.versus_torch} of PyTorch's)" if exported.torch_latency else row.latency,
        ),
        *(("note", note) for note in exported.notes),
    ]
    for term, value in shown:
        if value not in ("", NOTHING):
            table.add_row(term, escape(value))
    return table
