"""Where things are shown: results on standard output, all else on standard error."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.errors import UserError
from sned.files import check_place
from sned.progress import Progress, RichProgress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PLAIN_WIDTH = 140
"""Columns of a table that goes to a file or a pipe, where there is no terminal to ask."""


def help_of(command: Callable[..., None]) -> str:
    """The docstring of a command with its paragraphs on one line each, for the terminal to wrap."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def check_out(path: Path, suffix: str = ".safetensors") -> None:
    """Find out before the work whether the model that comes of it can be written, and will be read again."""
    if path.suffix != suffix:
        raise UserError(f"`--out` must be a file that ends in {suffix}, got '{path}'.")
    check_place(path)


def show(renderable: "RenderableType") -> None:
    """Print a table, or text with markup, on standard output."""
    _console().print(renderable)


def show_json(data: Any) -> None:
    """Print data as JSON on standard output, and nothing else."""
    import json

    import typer

    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def complain(message: str) -> None:
    """Print an error as a paragraph on standard error."""
    from rich.text import Text

    _console(stderr=True).print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=False)


def say(message: str) -> None:
    """Print a remark on standard error, where it does not get into what is piped on."""
    from rich.text import Text

    _console(stderr=True).print(Text(message), soft_wrap=True)


def progress() -> Progress:
    """Bars on standard error."""
    return RichProgress(_console(stderr=True))


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)
