"""Where the demo's trained weights are kept between runs, and how they are read back with suspicion."""

import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sned.errors import WriteError
from sned.files import atomic_path

_HERE = Path(__file__).parent
_RECIPE = ("data.py", "network.py", "training.py")


def cache_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Name the folder where this user's applications keep what they can make again."""
    if environment.get("XDG_CACHE_HOME"):
        return Path(environment["XDG_CACHE_HOME"]) / "sned"
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sned" / "Cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sned"
    return Path.home() / ".cache" / "sned"


def weights_path() -> Path:
    """Name the file of the weights; it changes with the data, the network and the training they come from."""
    recipe = hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in _RECIPE)).hexdigest()[:12]
    return cache_folder() / f"digits-{recipe}.safetensors"


def cached_weights(network: nn.Module) -> dict[str, Tensor] | None:
    """Read the cached weights, or give None where none fit `network`; damaged ones are no error."""
    try:
        weights = load_file(weights_path())
    except (OSError, SafetensorError):
        return None
    return weights if _fits(weights, network.state_dict()) else None


def keep_weights(network: nn.Module) -> None:
    """Write the weights of `network` to the cache; where it cannot be written, that is no error."""
    with suppress(WriteError), atomic_path(weights_path()) as beside:
        save_file(network.state_dict(), beside)


def _fits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return weights.keys() == expected.keys() and all(
        value.shape == expected[name].shape
        and value.dtype == expected[name].dtype
        and bool(torch.isfinite(value).all())
        for name, value in weights.items()
    )
