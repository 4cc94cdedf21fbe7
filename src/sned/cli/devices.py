"""`sned devices`: what networks can be cut for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli.options import Json
from sned.cli.output import help_of, show, show_json

if TYPE_CHECKING:
    from rich.table import Table

    from sned.devices import Device

app = typer.Typer(no_args_is_help=True, help="List the devices, or show what is known of one.")


def list_(json: Json = False) -> None:
    """List the devices of the catalogue.

    [bold]Example:[/bold]

    sned devices list
    """
    from sned.devices import list_devices

    devices = list_devices()
    if json:
        show_json([device.model_dump(mode="json") for device in devices])
    else:
        show(_catalogue(devices))


def show_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `sned devices list` shows it.")],
    json: Json = False,
) -> None:
    """Show what is known of a device, and where each figure comes from.

    [bold]Example:[/bold]

    sned devices show host
    """
    from sned.devices import find_device

    device = find_device(name)
    if json:
        show_json(device.model_dump(mode="json"))
    else:
        show(_profile(device))


def _catalogue(devices: "list[Device]") -> "Table":
    from rich.table import Table

    table = Table()
    for heading in ("name", "what", "kind", "processor", "runtimes", "measured here"):
        table.add_column(heading)
    for device in devices:
        table.add_row(
            device.name,
            device.title,
            device.kind,
            device.processor or "",
            ", ".join(device.runtimes),
            "yes" if device.measurable else "no",
        )
    return table


def _profile(device: "Device") -> "Table":
    from rich.table import Table

    table = Table(title=f"{device.title} ({device.name})", title_justify="left")
    table.add_column("figure", style="dim")
    table.add_column("value", overflow="fold")
    table.add_column("source", style="dim")
    for figure, value in device.model_dump().items():
        if figure in ("name", "title", "sources"):
            continue
        table.add_row(figure, _written(figure, value), device.sources.get(figure, ""))
    return table


def _written(figure: str, value: Any) -> str:
    """One figure in words; "not known" is said, not hidden."""
    if value is None:
        return "not known"
    special = {"clusters": _clusters, "caches": _caches, "memory_bytes": _memory}.get(figure)
    if special is not None:
        return special(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _clusters(clusters: Any) -> str:
    return ", ".join(map(_cluster, clusters))


def _cluster(cluster: Any) -> str:
    details = [f"{cluster[part]}{unit}" for part, unit in _CLUSTER_PARTS if cluster[part] is not None]
    cores = f"{cluster['count']} core{'s' if cluster['count'] != 1 else ''}"
    return f"{cores} ({', '.join(details)})" if details else cores


_CLUSTER_PARTS = (("name", ""), ("clock_ghz", " GHz"), ("simd_bits", " bits"))


def _caches(caches: Any) -> str:
    return ", ".join(f"L{cache['level']} {_memory(cache['size_bytes'])}" for cache in caches)


def _memory(value: float) -> str:
    """Memory comes in powers of two."""
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value} bytes"


app.command("list", help=help_of(list_))(list_)
app.command("show", help=help_of(show_))(show_)
