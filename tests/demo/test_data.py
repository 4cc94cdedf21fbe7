import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sned.demo.data import Split, digits
from sned.errors import NotFoundError


def splits() -> list[Split]:
    data = digits()
    return [data.train, data.validation, data.test]


def test_every_digit_is_in_exactly_one_split() -> None:
    """Oracle: scikit-learn's own counts of each digit."""
    labels = np.concatenate([split.labels for split in splits()])
    assert [len(split) for split in splits()] == [1147, 200, 450]
    assert np.bincount(labels).tolist() == np.bincount(load_digits().target).tolist()
    images = np.concatenate([split.images for split in splits()]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == len(np.unique(load_digits().data, axis=0))


def test_shapes_and_types() -> None:
    for split in splits():
        assert split.images.shape == (len(split), 1, 32, 32)
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int64)


def test_the_training_images_are_standardised() -> None:
    assert abs(digits().train.images.mean()) < 1e-3
    assert digits().train.images.std() == pytest.approx(1.0, abs=1e-3)


def test_the_splits_never_change() -> None:
    first = digits().test
    digits.cache_clear()
    np.testing.assert_array_equal(first.images, digits().test.images)
    np.testing.assert_array_equal(first.labels, digits().test.labels)


def test_shared_arrays_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        digits().train.images[0] = 0


def test_scikit_learn_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(NotFoundError, match=r"pip install 'sned\[demo\]'"):
        digits()
