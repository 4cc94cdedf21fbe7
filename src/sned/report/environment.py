"""On what, and with what, figures were obtained."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

from sned.devices.machine import cores, processor_name

PACKAGES = (
    "sned",
    "torch",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "ai-edge-litert",
    "litert-torch",
    "coremltools",
    "executorch",
    "openvino",
    "nncf",
)
"""Whose versions can change a figure."""


@dataclass(frozen=True)
class Environment:
    """Machine, system, versions and time of a run; nothing that identifies its user.

    Attributes:
        machine: name of the processor, "AMD EPYC 7B13".
        cores: logical ones that this process may use.
        system: "Linux x86_64".
        python: "3.11.7".
        versions: package → version.
        created: ISO 8601, to the second, UTC.
    """

    machine: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    created: str


def environment(packages: Sequence[str] = PACKAGES) -> Environment:
    """Look at the machine that this runs on; packages that are not installed are left out."""
    return Environment(
        machine=processor_name() or platform.machine(),
        cores=cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: version for name in packages if (version := _version(name))},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
