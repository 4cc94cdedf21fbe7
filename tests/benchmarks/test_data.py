import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.data import DEVIATION, MEAN, WEIGHTS, cifar10, data_folder, weights
from sned.errors import CheckpointError, NotFoundError


def original(folder: Path, count: int = 6, **changes: object) -> Path:
    """Write batches as the public archive has them: rows of red, green and blue planes, keys in bytes."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    rng = np.random.default_rng(1)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {
            b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"labels": rng.integers(0, 10, count).tolist(),
            **{key.encode(): value for key, value in changes.items()},
        }
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
    return batches


def test_the_original_archive_is_read(tmp_path: Path) -> None:
    batches = original(tmp_path)
    images, labels = cifar10("test", tmp_path)
    assert (images.shape, images.dtype, labels.dtype) == ((6, 3, 32, 32), np.float32, np.int64)
    assert cifar10("train", tmp_path)[0].shape == (30, 3, 32, 32)
    stored = pickle.loads((batches / "test_batch").read_bytes())
    order = np.random.default_rng(0).permutation(6)
    assert labels.tolist() == [stored[b"labels"][place] for place in order]
    red = stored[b"data"][order[0]][:1024].reshape(32, 32) / 255
    np.testing.assert_allclose(images[0, 0], (red - MEAN[0]) / DEVIATION[0], rtol=1e-5)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1/0",))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    original(tmp_path, extra=Evil())
    with pytest.raises(CheckpointError, match=r"eval', which no image needs.*Fetch it again"):
        cifar10("test", tmp_path)


def test_a_cut_off_archive_is_said(tmp_path: Path) -> None:
    batch = original(tmp_path) / "test_batch"
    batch.write_bytes(batch.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="not a whole batch"):
        cifar10("test", tmp_path)
    batch.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match="holds no 'data' and 'labels'"):
        cifar10("test", tmp_path)


def test_absent_data_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"cifar-10-python\.tar\.gz.*SNED_DATA"):
        cifar10("test", tmp_path)
    with pytest.raises(NotFoundError, match=r"chenyaofo/pytorch-cifar-models/releases.*SNED_DATA"):
        weights("resnet20", tmp_path)


def test_weights_are_found_beside_or_in_their_folder(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / WEIGHTS["resnet20"])
    assert torch.equal(weights("resnet20", tmp_path)["a"], torch.ones(2))
    (tmp_path / "weights").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights" / WEIGHTS["resnet20"])
    assert torch.equal(weights("resnet20", tmp_path)["a"], torch.zeros(2))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNED_DATA", str(tmp_path))
    assert data_folder() == tmp_path.resolve()
    monkeypatch.delenv("SNED_DATA")
    assert data_folder().parts[-2:] == ("shared", "data")


@pytest.mark.data
def test_any_prefix_of_the_real_data_stands_for_all(real_data: Path) -> None:
    images, labels = cifar10("test", real_data)
    assert len(images) == len(labels) >= 9_976
    assert np.bincount(labels[:1000], minlength=10).min() > 70
    assert abs(float(images.mean())) < 0.1
