import pytest
import torch
from torch import Tensor, nn

from sned.errors import CalibrationError, UserError
from sned.measure import agreement, evaluated


class Scores(nn.Module):
    """Gives its inputs back, with the classes of the first `flips` rows of each batch turned round."""

    def __init__(self, flips: int = 0) -> None:
        super().__init__()
        self.flips = flips

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert not self.training
        y = x.clone()
        y[: self.flips] = -y[: self.flips]
        return {"loss": y.mean(), "logits": y}


def test_agreement_is_the_fraction_of_rows_with_the_same_class() -> None:
    batches = [torch.tensor([[1.0, 2.0], [4.0, 3.0], [0.0, 1.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.0]])]
    assert agreement(Scores(), Scores(flips=1), batches) == 3 / 5
    assert agreement(Scores(), Scores(), batches) == 1.0


def test_modes_are_put_back() -> None:
    model = nn.Sequential(Scores(), nn.Dropout()).train()
    model[1].eval()
    evaluated(model, lambda m: float(m[0](torch.ones(1, 2))["loss"]))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_no_batches_or_no_classes_is_said() -> None:
    with pytest.raises(CalibrationError, match="`batches` is empty"):
        agreement(Scores(), Scores(), [])
    with pytest.raises(
        CalibrationError, match=r"No output of the model has classes.*Give `evaluate` instead"
    ):
        agreement(nn.Flatten(0).eval(), nn.Flatten(0).eval(), [torch.ones(2, 3)])


def test_evaluate_may_return_anything_that_is_a_number() -> None:
    assert evaluated(Scores(), lambda m: torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize("value", [float("nan"), "good", None, torch.ones(2)])
def test_evaluate_must_return_a_finite_number(value: object) -> None:
    with pytest.raises(UserError, match="`evaluate` must return a finite number"):
        evaluated(Scores(), lambda m: value)


def test_an_evaluate_that_fails_is_told_apart_from_our_own_faults() -> None:
    def broken(model: nn.Module) -> float:
        raise KeyError("labels")

    with pytest.raises(UserError, match="`evaluate` failed with KeyError: 'labels'"):
        evaluated(Scores(), broken)
