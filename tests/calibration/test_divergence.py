import math

import pytest
import torch

from sned.calibration import divergence
from sned.calibration.divergence import temperature

LOGITS = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3


def test_same_answers_do_not_diverge() -> None:
    found = divergence([LOGITS], [LOGITS])
    assert (found.kl, found.softened, found.agreement, found.error) == (0.0, 0.0, 1.0, 0.0)
    shifted = divergence([LOGITS], [LOGITS + 5.0])
    assert shifted.kl == pytest.approx(0.0, abs=1e-9)
    assert shifted.error > 0


def test_kl_is_that_of_the_textbook() -> None:
    other = LOGITS.flip(0)
    p, q = LOGITS.double().softmax(1), other.double().softmax(1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(p), torch.distributions.Categorical(q)
    )
    found = divergence([LOGITS], [other])
    assert found.kl == pytest.approx(float(expected.mean()))
    assert found.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    t = temperature(LOGITS.double())
    assert found.key == pytest.approx(divergence([LOGITS / t], [other / t]).kl or 0.0, rel=1e-6)


def test_probabilities_are_compared_as_they_are() -> None:
    p, q = LOGITS.softmax(1), LOGITS.flip(0).softmax(1)
    assert divergence([p], [q]).kl == pytest.approx(
        divergence([LOGITS], [LOGITS.flip(0)]).kl or 0.0, rel=1e-4
    )


def test_classes_of_images_lie_on_axis_one() -> None:
    maps = LOGITS[:48].reshape(2, 4, 6, 7).permute(0, 3, 1, 2)
    other = LOGITS.flip(0)[:48].reshape(2, 4, 6, 7).permute(0, 3, 1, 2)
    assert divergence([maps], [other]).kl == pytest.approx(
        divergence([LOGITS[:48]], [LOGITS.flip(0)[:48]]).kl or 0.0
    )


def test_what_is_no_class_is_compared_by_its_squared_error() -> None:
    y = torch.arange(10.0)
    found = divergence([y[:, None]], [y[:, None] + 1])
    assert found.kl is None
    assert found.key == pytest.approx(1 / float(y.var(correction=0)))


def test_nan_is_as_far_as_can_be() -> None:
    assert divergence([LOGITS], [LOGITS * math.nan]).key == math.inf
    assert divergence([LOGITS[:, :1]], [LOGITS[:, :1] * math.nan]).key == math.inf


def test_integers_and_nothing_do_not_diverge() -> None:
    assert divergence([torch.arange(3)], [torch.arange(3)]).key == 0.0


def test_masked_answers_are_left_aside() -> None:
    other, masked = LOGITS.flip(0), torch.full((50, 2), -math.inf)
    found = divergence([torch.cat([LOGITS, masked], 1)], [torch.cat([other, masked], 1)])
    expected = divergence([LOGITS], [other])
    assert (found.kl, found.softened, found.error) == pytest.approx(
        (expected.kl, expected.softened, expected.error)
    )
    assert found.agreement == expected.agreement
