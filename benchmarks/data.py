"""CIFAR-10 and trained networks, from the project's data folder or from the public originals.

`SNED_DATA` names the folder (default: `../shared/data` beside the project). Either layout is read:

    cifar10/labels.npz, cifar10/*.webp        lossless mosaics
    cifar-10-batches-py/data_batch_1 …        the original "python version", as its archive unpacks
    weights/NAME.pt, or NAME.pt               state dicts
"""

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sned.errors import CheckpointError, NotFoundError

ROOT = Path(__file__).resolve().parent.parent
MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
DEVIATION = np.array([0.2023, 0.1994, 0.2010], np.float32)

WEIGHTS = {
    "resnet20": "cifar10_resnet20-4118986f.pt",
    "resnet56": "cifar10_resnet56-187c023a.pt",
    "shufflenetv2_x0_5": "cifar10_shufflenetv2_x0_5-1308b4e9.pt",
}

_ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_RELEASES = "https://github.com/chenyaofo/pytorch-cifar-models/releases"
_ORIGINAL = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_TILES, _SIDE, _COLOURS = 100, 32, 3

Split = Literal["train", "test"]


def data_folder() -> Path:
    """Name the folder of real data: `SNED_DATA`, or `../shared/data` from the project's root."""
    return Path(os.environ.get("SNED_DATA") or ROOT / ".." / "shared" / "data").resolve()


def cifar10(split: Split, folder: Path | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read a split of CIFAR-10: images `float32 [n, 3, 32, 32]`, normalised by colour; labels `int64 [n]`.

    The mosaics hold 49,914 and 9,976 images, the originals 50,000 and 10,000. The order is shuffled, the same
    each time: some sources sort by class, and the first thousand images must stand for all.

    Raises:
        NotFoundError: neither layout is there; the text says how to fetch the originals.
    """
    folder = folder or data_folder()
    if (folder / "cifar10" / "labels.npz").is_file():
        pixels, labels = _from_mosaics(folder / "cifar10", split)
    elif (folder / "cifar-10-batches-py").is_dir():
        pixels, labels = _from_originals(folder / "cifar-10-batches-py", split)
    else:
        raise NotFoundError(
            f"CIFAR-10 was not found in '{folder}'. Fetch and unpack it there, and say where that is: "
            f"`mkdir -p data && curl -L {_ARCHIVE} | tar xz -C data && export SNED_DATA=data`."
        )
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order].astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels[order].astype(np.int64)


def weights(name: str, folder: Path | None = None) -> dict[str, Tensor]:
    """Read the state dict of a trained network, one of `WEIGHTS`.

    Raises:
        NotFoundError: the file is not there; the text says how to fetch it.
    """
    folder = folder or data_folder()
    file = WEIGHTS[name]
    path = next((place for place in (folder / "weights" / file, folder / file) if place.is_file()), None)
    if path is None:
        raise NotFoundError(
            f"The weights '{file}' were not found in '{folder}' nor in its folder 'weights'. "
            f"Download that file from the releases at {_RELEASES} into a folder of yours, "
            "and say which: `export SNED_DATA=that/folder`."
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _from_mosaics(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    from PIL import Image

    labels = np.load(folder / "labels.npz")[split]
    names = ["test"] if split == "test" else [f"train-{i}" for i in range(5)]
    mosaics = [np.asarray(Image.open(folder / f"{name}.webp").convert("RGB")) for name in names]
    return np.concatenate([_cut(mosaic) for mosaic in mosaics])[: len(labels)], labels


def _cut(mosaic: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles `[10000, 32, 32, 3]`, row by row, of a mosaic `[3200, 3200, 3]`."""
    rows = mosaic.reshape(_TILES, _SIDE, _TILES, _SIDE, _COLOURS)
    return rows.transpose(0, 2, 1, 3, 4).reshape(-1, _SIDE, _SIDE, _COLOURS)


def _from_originals(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    batches = [_read_batch(folder / name) for name in _ORIGINAL[split]]
    pixels = np.concatenate([np.asarray(batch[b"data"], np.uint8) for batch in batches])
    labels = np.concatenate([np.asarray(batch[b"labels"], np.uint8) for batch in batches])
    return pixels.reshape(-1, _COLOURS, _SIDE, _SIDE).transpose(0, 2, 3, 1), labels


def _read_batch(path: Path) -> Mapping[bytes, Any]:
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' is not a whole batch of CIFAR-10 ({error}). Fetch it again."
        ) from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise CheckpointError(f"'{path}' holds no 'data' and 'labels': it is not a batch of CIFAR-10.")
    return batch


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and nothing that could run code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for '{module_name}.{global_name}', which no image needs")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
