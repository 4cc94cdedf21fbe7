"""Options that more than one command takes."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="path/to/file.py:make_model, package.module:factory, torchvision:resnet50, timm:NAME, or a Keras "
        "model's .keras or .h5 file.",
    ),
]
Example = Annotated[
    str | None,
    typer.Option(
        "--example",
        "-e",
        metavar="SHAPE|FILE:NAME",
        help="What the model is called with: a shape with its batch, 1,3,32,32, for normal numbers, or file.py:example "
        "for a tensor (of ids, say), a tuple of arguments or a dict of keyword arguments. Keras models mostly know.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", "-w", metavar="FILE", help="A .safetensors file, or a state dict saved by PyTorch."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads inside an operator.")]
Runtime = Annotated[str, typer.Option("--runtime", help="What will run the file.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="Of weights and activations: float32, float16 or int8; only float32 is measured."
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Inputs a run.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="What will run the model: a device or set of `sned devices list`, or a profile (.toml).",
    ),
]
