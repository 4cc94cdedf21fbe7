"""`sned prune`: the short road through everything, for a model of one's own."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.inputs import load_batches, load_evaluate, load_example, load_model
from sned.cli.options import Batch, Device, Dtype, Example, Json, Model, Runtime, Threads, Weights
from sned.cli.output import progress, say, show
from sned.cli.stopping import keeping
from sned.errors import BudgetError

if TYPE_CHECKING:
    from sned.devices import Budget
    from sned.report import Report

_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_COUNTED = ("size_bytes", "macs", "parameters", "peak_memory_bytes")
"""Amounts that come in millions. Of others an "m" would be taken for milli: a latency of 5m is refused."""

_AMOUNT = "What may remain: a number, 50%, or 2x (a half)."
_ASKED = "Budget"
_CHOICE = "What goes"


def _amount(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="AMOUNT", help=what, rich_help_panel=_ASKED)


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
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate", metavar="FILE:NAME", help="How good a model is, higher is better: file.py:accuracy."
        ),
    ] = None,
    match_seconds: Annotated[
        float | None,
        typer.Option(
            "--match-seconds",
            metavar="SECONDS",
            help="After repair, spend this long matching the original's answers on the calibration inputs.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Where model.safetensors, plan.json, model.onnx and the report go.",
        ),
    ] = None,
    latency_ms: Annotated[str | None, _amount("latency-ms", f"Time of a run. {_AMOUNT}")] = None,
    energy_mj: Annotated[str | None, _amount("energy-mj", "Energy of a run, millijoules.")] = None,
    size_bytes: Annotated[
        str | None, _amount("size-bytes", "Size of the exported file; 5M and 300k too.")
    ] = None,
    macs: Annotated[str | None, _amount("macs", "Multiply-accumulates of a run.")] = None,
    parameters: Annotated[str | None, _amount("parameters", "Number of parameters.")] = None,
    peak_memory_bytes: Annotated[
        str | None, _amount("peak-memory-bytes", "Memory of the activations held at once.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="Fraction of each group's units to remove.", rich_help_panel=_ASKED),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss",
            help="How much accuracy may go, with --evaluate: 0.01 is one point of a hundred.",
            rich_help_panel=_ASKED,
        ),
    ] = None,
    saliency: Annotated[
        str | None,
        typer.Option(
            "--saliency",
            metavar="NAME",
            help="Which units matter: reconstruction (the default with --calibration), l2 (without), taylor …",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            metavar="NAME",
            help="How much goes where: knapsack (the default with calibration), global (without), uniform or manual.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            "--rules",
            metavar="FILE",
            help="TOML with groups to protect, sparsities of groups, counts to keep to; `sned inspect` has names.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="LAYER",
            help="A layer or residual branch to leave out altogether, may be given again for more; or auto.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    device: Device = "host",
    runtime: Runtime = "onnxruntime",
    batch: Batch = 1,
    threads: Threads = 1,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Cut a model down to a budget, repair it without training, and prove what was gained.

    Every amount of the budget is absolute, or relative to what the model costs now: [bold]--macs 67%[/bold]
    keeps two thirds. The model is pruned on a copy, verified, exported to ONNX, and both are timed in the
    runtime. With [bold]--out[/bold] the model, the plan, the ONNX file and the report are kept.

    [bold]Examples:[/bold]

    sned prune model.py:make_model --example 1,3,32,32 --latency-ms 2 --out out/

    sned prune model.py:make_model -w model.pt -e 1,3,32,32 -c model.py:batches --macs 50% --out out/

    sned prune model.keras -e 1,32,32,3 -c model.py:batches --macs 50% --out out/

    sned prune model.py:make_model -e 1,3,32,32 --evaluate model.py:accuracy --max-loss 0.01 --out out/

    sned prune model.py:make_model -e 1,3,32,32 --rules rules.toml --out out/

    Rules are TOML such as [bold]protect = \\["stem"][/bold] and [bold]sparsity = {"layer1.*" = 0.5}[/bold]; where
    they alone say how much goes, no budget is needed. A run that was stopped goes on from where it was when it is
    given the same [bold]--out[/bold] again.
    """
    fields: dict[str, Any] = {
        "latency_ms": latency_ms,
        "energy_mj": energy_mj,
        "size_bytes": size_bytes,
        "macs": macs,
        "parameters": parameters,
        "peak_memory_bytes": peak_memory_bytes,
        "sparsity": sparsity,
        "max_loss": max_loss,
        "device": device,
        "runtime": runtime,
        "batch": batch,
        "threads": threads,
        "dtype": dtype,
    }
    if max_loss is not None and evaluate is None:
        raise BudgetError(
            "`--max-loss` needs `--evaluate FILE:NAME`, a function that says how good a model is."
        )
    from sned.devices import find_devices
    from sned.devices.budget import AMOUNTS
    from sned.pipeline import prune
    from sned.pipeline.asked import RULES_ALONE
    from sned.search import Rules

    given = Rules() if rules is None else Rules.from_toml(rules)
    if all(fields[name] is None for name in (*AMOUNTS, "sparsity", "max_loss")):
        if not (given.sparsity or without):
            raise BudgetError(
                "A budget must ask for something. Say what may remain, such as `--latency-ms 8` or `--macs 50%`, or "
                "give `--sparsity`, or `--max-loss` with `--evaluate`."
            )
        fields |= RULES_ALONE.amounts
    asked = _budget(**fields)
    find_devices(asked.device)  # a wrong name is found before anything is built
    built = load_model(model, weights)
    inputs = load_example(example, built)
    batches = load_batches(calibration) if calibration else None
    measure = load_evaluate(evaluate) if evaluate else None
    with keeping(out):
        result = prune(
            built,
            inputs,
            budget=asked,
            calibration=batches,
            evaluate=measure,
            saliency=saliency,
            search_by=search,
            rules=given,
            without=without or (),
            match_seconds=match_seconds,
            out=out,
            progress=progress(),
        )
    show_report(result.report, out, as_json=json)


def show_report(report: "Report", out: Path | None, *, as_json: bool) -> None:
    """Show the report of a run, and say where the rest of it is."""
    from sned.report import to_json
    from sned.report.table import to_table

    if as_json:
        typer.echo(to_json(report))
    else:
        show(to_table(report))
    if out is None:
        say("Nothing was written. Give --out DIR to keep the model, the plan, the ONNX file and the report.")
    else:
        kept = next(file for name in ("model.safetensors", "model.keras") if (file := out / name).is_file())
        say(f"Open {out / 'report.html'} for the whole report; the model is in {kept}.")


def _budget(**fields: Any) -> "Budget":
    from sned.devices import Budget

    given = {name: value for name, value in fields.items() if value is not None}
    return Budget(**given | {name: _expanded(given[name]) for name in _COUNTED if name in given})


def _expanded(value: str) -> float | str:
    """ "40M" → 40000000.0; all else as it is, for `Budget` to judge."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt])b?", value.strip(), re.IGNORECASE)
    return float(found[1]) * _SUFFIXES[found[2].lower()] if found else value
