import pytest
import torch
from torch import nn

from sned.errors import CalibrationError
from sned.measure import stages


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_each_stage_is_compared_with_the_first_and_with_the_one_before() -> None:
    networks = {"dense": Scaled(2.0), "pruned": Scaled(1.0), "repaired": Scaled(1.5), "int8": Scaled(-2.0)}
    found = stages(networks, iter([torch.randn(4, 3), torch.randn(2, 3)]))
    assert [stage.name for stage in found] == ["pruned", "repaired", "int8"]
    assert [stage.error for stage in found] == pytest.approx([0.5, 0.25, 2.0])
    assert [stage.added for stage in found] == pytest.approx([0.5, 0.5, 3.5 / 1.5])
    assert [stage.agreement for stage in found] == [1.0, 1.0, 0.0]


class WithStates(nn.Module):
    """Classes `[n, 3]`, and states `[1, n, 2]` as an LSTM returns them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * self.factor, x[None, :, :2] * self.factor**2


def test_a_last_batch_may_be_smaller_whatever_axis_inputs_lie_on() -> None:
    x = torch.randn(6, 3)
    found = stages({"dense": WithStates(2.0), "pruned": WithStates(-1.0)}, [x[:4], x[4:]])
    assert found[0].error == pytest.approx(1.5)
    assert found[0].agreement == 0.0


def test_no_inputs_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="no inputs to compare the stages on"):
        stages({"dense": Scaled(1.0), "pruned": Scaled(2.0)}, [])
