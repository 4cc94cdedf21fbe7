"""Handwritten digits at 32 × 32, in three splits that never change."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from sned.errors import NotFoundError

SIDE = 32
CLASSES = 10
_TEST, _VALIDATION, _SEED = 450, 200, 20


@dataclass(frozen=True)
class Split:
    """Images `float32 [n, 1, 32, 32]`, standardised, and their labels `int64 [n]` in 0 … 9."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Digits:
    """What is learnt from, what decisions are made on, and what only the final figures come from."""

    train: Split
    validation: Split
    test: Split


@lru_cache(maxsize=1)
def digits() -> Digits:
    """Load scikit-learn's 1,797 scanned digits, brought from 8 × 8 to 32 × 32 by bilinear interpolation.

    Returns:
        1,147 training, 200 validation and 450 test images, split at random with a fixed seed; standardised
        with the mean and the deviation of the training images. The arrays are shared: they are read-only.

    Raises:
        NotFoundError: scikit-learn is not installed.

    Reference: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test half).
    """
    small, labels = _load()
    large = interpolate(torch.from_numpy(small)[:, None], size=(SIDE, SIDE), mode="bilinear").numpy()
    order = np.random.default_rng(_SEED).permutation(len(labels))
    test, validation, train = np.split(order, [_TEST, _TEST + _VALIDATION])
    mean, deviation = large[train].mean(), large[train].std()
    images = (large - mean) / deviation
    images.flags.writeable = labels.flags.writeable = False
    return Digits(*(_split(images, labels, chosen) for chosen in (train, validation, test)))


def _load() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise NotFoundError(
            "The demo learns from scikit-learn's digits, and scikit-learn is not installed: "
            "run `pip install 'sned[demo]'`."
        ) from error
    data = load_digits()
    return data.images.astype(np.float32), data.target.astype(np.int64)


def _split(images: NDArray[np.float32], labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> Split:
    parts = (images[chosen], labels[chosen])
    for part in parts:
        part.flags.writeable = False
    return Split(*parts)
