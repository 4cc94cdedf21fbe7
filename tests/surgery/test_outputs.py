"""What a pruned network returns is held against its plan, output by output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sned.errors import SurgeryError
from sned.surgery.outputs import largest_difference

ANSWERS = torch.tensor([[1.0, -2.0], [4.0, 0.5]])


@pytest.mark.parametrize("beside", [torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bfloat16)])
def test_a_rough_output_does_not_loosen_the_limit_of_the_others(beside: Tensor) -> None:
    with pytest.raises(SurgeryError, match=r"outputs differ by 0\.01 of the largest one.*\(output 0\)"):
        largest_difference([ANSWERS * 1.01, beside], [ANSWERS, beside], 2)


@pytest.mark.parametrize(("dtype", "difference"), [(torch.float32, 5e-5), (torch.float16, 1e-2)])
def test_what_rounding_may_do(dtype: torch.dtype, difference: float) -> None:
    got = (ANSWERS * (1 + difference)).to(dtype)
    assert largest_difference([got], [ANSWERS.to(dtype)], 2) == pytest.approx(difference, rel=0.2)


def test_complex_numbers_are_compared_whole() -> None:
    turned = torch.view_as_complex(ANSWERS)
    assert largest_difference([turned.conj()], [turned.conj()], 2) == 0
    with pytest.raises(SurgeryError, match="outputs differ by 1 of the largest one"):
        largest_difference([turned.conj()], [turned], 2)
