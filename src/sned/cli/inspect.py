"""`sned inspect`: what of a network can go, and what cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sned.cli.bounds import bound_data, bound_tables
from sned.cli.inputs import load_example, load_model
from sned.cli.options import Batch, Device, Dtype, Example, Json, Model, Runtime, Threads, Weights
from sned.cli.output import progress, show, show_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from sned.devices import Cost, LayerCost
    from sned.devices.cost import Basis
    from sned.graph import Graph, Group
    from sned.graph.layers import Layer
    from sned.report.shares import Share

_MEMBERS_SHOWN = 4


def command(
    model: Model,
    example: Example = None,
    weights: Weights = None,
    device: Device = "host",
    batch: Batch = 1,
    threads: Threads = 1,
    runtime: Runtime = "onnxruntime",
    dtype: Dtype = "float32",
    basis: Annotated[
        str | None,
        typer.Option(
            "--basis",
            help="What latencies stand on: measured, calibrated or estimated; else the best that there is. After "
            "`sned devices calibrate host`, calibrated times nothing here.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.html", help="Write what bounds each layer, with a roofline picture."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show the groups of units that go together, what each is worth, and what has to stay.

    A group is a set of interchangeable units (channels, neurons, heads); removing one removes its slice of
    every parameter named beside it. The shares say how much of the network's MACs, parameters and predicted
    latency would go with the whole group. "Exact" means that removing a unit equals setting it to zero.

    [bold]Example:[/bold]

    sned inspect torchvision:resnet18 --example 1,3,224,224

    sned inspect torchvision:resnet18 --example 1,3,224,224 --device pixel-9 --report layers.html
    """
    from sned.devices import cost_model
    from sned.devices.model import batch_of
    from sned.devices.profile import find_one
    from sned.report.shares import shares
    from sned.surgery import trace

    target = find_one(device, why="`sned inspect` looks at one device")
    built = load_model(model, weights)
    inputs = load_example(example, built)
    shown = progress()
    with shown.task("tracing", total=1) as advance:
        graph = trace(built, inputs)
        advance(1)
    cost = cost_model(
        graph, target, runtime=runtime, batch=batch, threads=threads, dtype=dtype, progress=shown,
        basis=cast("Basis | None", basis),
    )  # fmt: skip
    dense = cost.evaluate(_sizes(graph)).at(0)
    cost = replace(cost, notes=(*cost.exceeded(dense), *cost.notes))
    worth = shares(graph, cost)
    layers = cost.layers(_sizes(graph)[0])
    if report is not None:
        _write_report(report, cost, layers, f"{type(built).__name__} on {device}")
    if json:
        show_json({**_data(graph, worth, dense), **bound_data(cost, layers)})
    else:
        for part in _tables(graph, worth, dense, f"{device}, batch {batch_of(graph, batch)}: {cost.origin}"):
            show(part)
        for part in bound_tables(cost, layers):
            show(part)


def _write_report(path: Path, cost: "Cost", layers: "Sequence[LayerCost]", title: str) -> None:
    from sned.files import atomic_write_text
    from sned.report.bounds import to_page

    atomic_write_text(path, to_page(cost, layers, title))


def _sizes(graph: "Graph") -> Any:
    import numpy as np

    return np.array([[group.size for group in graph.groups]], np.float64)


def _data(graph: "Graph", worth: "Sequence[Share]", dense: Mapping[str, float]) -> dict[str, Any]:
    from dataclasses import asdict

    groups = [
        {
            "name": group.name,
            "units": group.size,
            "cells": group.cell_count,
            "exact": group.exact,
            "macs_share": share.macs,
            "parameters_share": share.parameters,
            "latency_share": share.latency,
            "members": [
                {
                    "parameter": part.parameter,
                    "axis": part.axis,
                    "positions_per_unit": int(part.positions.shape[1]),
                }
                for part in group.slices
            ],
        }
        for group, share in zip(graph.groups, worth, strict=True)
    ]
    frozen = [asdict(item) for item in graph.frozen]
    layers = [
        {"name": layer.name, "parameters": layer.parameters, "adds": layer.adds} for layer in graph.layers
    ]
    return {
        "dense": dict(dense),
        "groups": groups,
        "layers": layers,
        "frozen": frozen,
        "unread": _unread(graph),
    }


def _tables(
    graph: "Graph", worth: "Sequence[Share]", dense: Mapping[str, float], where: str
) -> "list[RenderableType]":
    parts: list[RenderableType] = [_summary(graph, dense, where), _groups(graph, worth)]
    if graph.layers:
        parts.append(_layers(graph))
    if graph.frozen:
        parts.append(_frozen(graph))
    if unread := _unread(graph):
        parts.append(f"Never read on this example, so left alone: {_listed(unread)}.")
    return parts


def _summary(graph: "Graph", dense: Mapping[str, float], where: str) -> str:
    from sned.report.figures import written

    costs = {name: written(name, value) for name, value in dense.items()}
    units = sum(group.size for group in graph.groups)
    return (
        f"{units} units in {len(graph.groups)} groups can go. Dense: {costs['macs']} MACs, "
        f"{costs['parameters']} parameters, {costs['latency_ms']} predicted on {where}."
    )


def _groups(graph: "Graph", worth: "Sequence[Share]") -> "Table":
    from rich.table import Table

    from sned.report.figures import percent

    table = Table(title="What can go", title_justify="left")
    table.add_column("group", overflow="fold")
    for heading in ("units", "MACs", "parameters", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("exact")
    table.add_column("goes with each unit", style="dim", overflow="fold")
    for group, share in zip(graph.groups, worth, strict=True):
        fractions = (share.macs, share.parameters, share.latency)
        exact = "yes" if group.exact else "no"
        table.add_row(group.name, _units(group), *map(percent, fractions), exact, _members(graph, group))
    return table


def _units(group: "Group") -> str:
    """How many, and of how many cells each must keep equally many."""
    return str(group.size) if group.cell_count == 1 else f"{group.cell_count} × {group.cell_size}"


def _members(graph: "Graph", group: "Group") -> str:
    """What goes, shortly: "conv1.weight[0], bn1, conv2.weight[1]", the numbers being axes.

    A layer that holds only vectors (a normalisation) is one member, and a bias goes without saying.
    """
    matrices = [part for part in group.slices if len(_shape(graph, part.parameter)) > 1]
    with_matrix = {_layer(part.parameter) for part in matrices}
    names: dict[str, None] = {}
    for part in group.slices:
        if any(part is matrix for matrix in matrices):
            names.setdefault(f"{part.parameter}[{part.axis}]")
        elif _layer(part.parameter) not in with_matrix:
            names.setdefault(_layer(part.parameter))
    return _listed(list(names))


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _shape(graph: "Graph", parameter: str) -> tuple[int, ...]:
    return graph.tensors[graph.parameters[parameter]].shape


def _layers(graph: "Graph") -> "Table":
    """The outermost layers, of a mere stack of layers those in it, and the branches that add to a stream; the layers
    inside them can go too."""
    from rich.table import Table

    table = Table(title="Layers that can be left out whole (sned.without)", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("in its place")
    names = [layer.name for layer in graph.layers if not _is_stack(layer, graph.layers)]
    for layer in graph.layers:
        if layer.name not in names:
            continue
        outermost = not any(layer.name.startswith(f"{name}.") for name in names)
        if outermost or layer.adds:
            in_place = "nothing is added" if layer.adds else "its input passes"
            table.add_row(layer.name, f"{layer.parameters:,}", in_place)
    return table


def _is_stack(layer: "Layer", layers: "Sequence[Layer]") -> bool:
    """Whether a layer is others one after the other, each of which can go by itself."""
    inside = [other for other in layers if other.name.startswith(f"{layer.name}.")]
    parts = [each for each in inside if not any(each.name.startswith(f"{other.name}.") for other in inside)]
    calls = [part.call for part in parts if part.call is not None]
    if layer.call is None or len(calls) < 2:
        return False
    passed = [layer.call.given, *(call.made for call in calls)]
    return [*(call.given for call in calls), layer.call.made] == passed


def _frozen(graph: "Graph") -> "Table":
    from rich.table import Table

    table = Table(title="What has to stay", title_justify="left")
    table.add_column("units of", overflow="fold")
    table.add_column("how many", justify="right")
    for heading in ("because of", "in module", "why"):
        table.add_column(heading, overflow="fold")
    for item in graph.frozen:
        table.add_row(item.name, str(item.size), item.op, item.module or "the model", item.reason)
    return table


def _unread(graph: "Graph") -> list[str]:
    """Parameters that no pass read, without the counters that BatchNorm keeps and no one reads."""
    return [name for name in graph.unread if not name.endswith(".num_batches_tracked")]


def _listed(names: "Sequence[str]") -> str:
    shown = ", ".join(names[:_MEMBERS_SHOWN])
    return shown if len(names) <= _MEMBERS_SHOWN else f"{shown} and {len(names) - _MEMBERS_SHOWN} more"
