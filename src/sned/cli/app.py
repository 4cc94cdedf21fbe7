"""The commands together, and what becomes of an error."""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from sned.cli.demo import command as demo
from sned.cli.devices import app as devices
from sned.cli.export import command as export
from sned.cli.finetune import command as finetune
from sned.cli.inspect import command as inspect
from sned.cli.measure import command as measure
from sned.cli.output import complain, help_of
from sned.cli.prune import command as prune
from sned.cli.sparsify import command as sparsify
from sned.cli.stopping import Stopped, stoppable
from sned.errors import SnedError
from sned.version import __version__

app = typer.Typer(
    name="sned",
    help=(
        "Cut a trained network down until it fits the device that will run it, and prove what was gained.\n\n"
        "Start with [bold]sned demo[/bold], or on your own network:\n\n"
        "[bold]sned inspect model.py:make_model --example 1,3,32,32[/bold]\n\n"
        "[bold]sned prune model.py:make_model --example 1,3,32,32 --latency-ms 50% --out out/[/bold]"
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
)
for name, command in (
    ("prune", prune),
    ("sparsify", sparsify),
    ("finetune", finetune),
    ("inspect", inspect),
    ("measure", measure),
    ("export", export),
    ("demo", demo),
):
    app.command(name, help=help_of(command))(stoppable(command))
app.add_typer(devices, name="devices")

INTERRUPTED = 130
"""128 + SIGINT, as shells count."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends with `SystemExit`.

    Args:
        arguments: what follows the program's name; None for those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Whoever sees an error adds --debug to the end of the same line: it is understood anywhere.
    debug = "--debug" in given
    try:
        app([word for word in given if word != "--debug"])
    except Stopped as stopped:
        _end(str(stopped), INTERRUPTED, debug)
    except SnedError as error:
        _end(str(error), error.exit_code, debug)
    except Exception as error:  # noqa: BLE001 - the last to see it
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _end(
            f"sned itself failed: {what}. Please report this, with what the same command shows with --debug.",
            1,
            debug,
        )


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sned {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    del version, debug  # read by their callback, and by `main` before anything can fail


def _end(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    complain(message)
    raise SystemExit(code)
