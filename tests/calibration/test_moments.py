"""Moments of several consumers together."""

import torch

from sned.calibration.moments import Sums, pooled


def test_moments_pool_to_those_of_all_patches() -> None:
    torch.manual_seed(0)
    pieces = [torch.randn(2, 5, count) + count for count in (3, 40, 7)]
    made = []
    for x in pieces:
        sums = Sums()
        sums.add_patches(x)
        made.append(sums.moment())
    whole = torch.cat(pieces, dim=2).double()
    found = pooled(made)
    assert found.count == 50
    assert found.second is not None
    torch.testing.assert_close(found.second, whole @ whole.mT / 50, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.diagonal, whole.square().mean(2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.mean, whole.mean(2), rtol=1e-5, atol=1e-4)
