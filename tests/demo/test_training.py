from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.demo import Digits, Split, accuracy, cache, digits, make_network, trained_network, training


class Shallow(nn.Module):
    """Stands in for the network where only the training around it is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.avg_pool2d(self.norm(images), 4).flatten(1))


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(training, "make_network", lambda: Shallow().eval())
    monkeypatch.setattr(training, "_PLAUSIBLE", 0.5)


@pytest.mark.xdist_group("trained network")
def test_the_promise_is_kept() -> None:
    """The real network, from the user's own cache or trained here, on images that nothing was chosen on."""
    network = trained_network()
    assert not network.training
    assert accuracy(network, digits().test.images, digits().test.labels) >= 0.98


@pytest.mark.usefixtures("shallow")
def test_training_learns_and_repeats_itself() -> None:
    network, again = training.train(epochs=3), training.train(epochs=3)
    assert accuracy(network, digits().validation.images, digits().validation.labels) > 0.7
    assert not network.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.usefixtures("shallow")
def test_the_callers_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    training.train(epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("shallow")
def test_the_best_epoch_on_validation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: we decide what validation says; the test images must never be looked at."""
    seen: list[dict[str, Tensor]] = []
    verdicts = iter([0.3, 0.9, 0.5])

    def verdict(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
        assert labels is digits().validation.labels
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(verdicts)

    monkeypatch.setattr(training, "accuracy", verdict)
    network = training.train(epochs=3)
    assert torch.equal(network.state_dict()["head.weight"], seen[1]["head.weight"])
    assert not torch.equal(network.state_dict()["head.weight"], seen[2]["head.weight"])


@pytest.mark.usefixtures("shallow")
def test_training_happens_once_unless_the_cache_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    times = 0
    train = training.train

    def counted(**options: object) -> nn.Module:
        nonlocal times
        times += 1
        return train(**options)

    monkeypatch.setattr(training, "train", counted)
    first = trained_network()
    second = trained_network()
    assert times == 1
    assert torch.equal(first.state_dict()["head.weight"], second.state_dict()["head.weight"])
    cache.weights_path().write_bytes(b"damaged")
    trained_network()
    assert times == 2


@pytest.mark.usefixtures("shallow")
def test_plausible_weights_that_read_badly_are_trained_again() -> None:
    cache.keep_weights(Shallow())
    network = trained_network()
    assert accuracy(network, digits().validation.images, digits().validation.labels) > 0.5


def test_accuracy_is_a_fraction_of_all_images_whatever_the_batches() -> None:
    images, labels = digits().train.images[:300], digits().train.labels[:300]

    class Knows(nn.Module):
        at = 0

        def forward(self, batch: Tensor) -> Tensor:
            truth = torch.tensor(labels[self.at : self.at + len(batch)])
            said = torch.where(torch.arange(self.at, self.at + len(batch)) % 3 == 0, (truth + 1) % 10, truth)
            self.at += len(batch)
            return nn.functional.one_hot(said, 10).float()

    assert accuracy(Knows(), images, labels) == pytest.approx(200 / 300)


def test_distortion_is_small_and_keeps_the_shape() -> None:
    images = torch.tensor(digits().train.images[:16])
    torch.manual_seed(0)
    distorted = training._distorted(images)
    assert distorted.shape == images.shape
    assert not torch.equal(distorted, images)
    assert float((distorted - images).abs().mean()) < 0.5
    assert Digits(*[Split(digits().test.images, digits().test.labels)] * 3).test.images.std() > 0.5


def test_make_network_is_not_seeded() -> None:
    one, two = make_network(), make_network()
    assert not torch.equal(one.state_dict()["head.weight"], two.state_dict()["head.weight"])
