"""What a network may take and return, in every form, whatever runtime it goes to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import ExampleError
from sned.export import TARGETS, find_target
from sned.export.target import FP32, INT8
from sned.graph.example import tensors_in
from tests.export.runtimes import available


class Outputs(nn.Module):
    """Outputs of every form: rows first, a scalar of all rows, states as recurrent layers have them, a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        y = self.layer(left) - 2 * self.layer(right)
        return y, y.mean(), torch.stack([y, y + 1]), torch.arange(4)


@pytest.mark.parametrize("to", TARGETS)
def test_outputs_need_not_have_the_batch_first(tmp_path: Path, to: str) -> None:
    available(to)
    target, model = find_target(to), Outputs().eval()
    left, right = torch.randn(2, 2, 6).unbind()
    made = sned.export(
        model, (left, right), calibration=[tuple(torch.randn(2, 7, 6).unbind())], to=to, dynamic_batch=False,
        out=tmp_path / f"m{target.suffix}", runs=0,
    )  # fmt: skip
    file = made.module()
    with torch.no_grad():
        expected = model(left, right)
        for got in (file(left, right), file(right=right, left=left)):
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, check_dtype=False)
        with pytest.raises(ExampleError, match="answers to some rows depend on others"):
            file(torch.randn(5, 6), torch.randn(5, 6))


class Masked(nn.Module):
    """A mask that is the same for all rows, and a table that is as long as the example is traced with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        return (mask @ self.layer(x)).sum(1) + table.sum()


@pytest.mark.parametrize("to", TARGETS)
def test_batches_may_be_as_long_as_what_has_no_batch_axis(tmp_path: Path, to: str) -> None:
    available(to)
    target, model = find_target(to), Masked().eval()
    mask, table = torch.randn(5, 5), torch.randn(2, 3)
    made = sned.export(
        model, (torch.randn(1, 5, 6), mask, table), calibration=[(torch.randn(5, 5, 6), mask, table)], to=to,
        out=tmp_path / f"m{target.suffix}", runs=0,
    )  # fmt: skip
    assert made.dynamic_batch == target.dynamic_batch
    for rows in (2, 5):
        x = torch.randn(rows, 5, 6)
        with torch.no_grad():
            expected = model(x, mask, table)
        torch.testing.assert_close(made.module()(x, mask, table), expected, atol=1e-4, rtol=1e-4)


class Nested(nn.Module):
    """A scalar, tensors in containers with a flag between them, and a tensor behind these."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, scale: Tensor, batch: dict[str, Any], pair: tuple[Tensor, list[Tensor]]) -> Any:
        (x, (y,)) = pair
        z = self.left(batch["u"]) * scale - 2 * self.right(x)
        return {"z": [z, (self.left(y),)], "w": self.right(batch["v"]) + batch["plus"]}


@pytest.mark.parametrize("to", TARGETS)
def test_scalars_and_nests_enter_as_the_model_takes_them(tmp_path: Path, to: str) -> None:
    available(to)
    target, model = find_target(to), Nested().eval()

    def given(rows: int) -> tuple[Any, ...]:
        u, v, x, y = torch.randn(4, rows, 6).unbind()
        return torch.tensor(float(rows)), {"v": v, "plus": 3.0, "u": u}, (x, [y])

    file = sned.export(model, given(2), to=to, out=tmp_path / f"m{target.suffix}", runs=0).module()
    for rows in (1, 2, 5):
        scale, batch, pair = given(rows)
        with torch.no_grad():
            expected = tensors_in(model(scale, batch, pair))
        for got in (file(scale, batch, pair), file(scale, pair=pair, batch=dict(sorted(batch.items())))):
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        ExampleError, match=r"takes float32\[any, 6\] as \['pair'\]\[0\], .* got float32\[2, 1, 6\]"
    ):
        file(scale, batch, (torch.zeros(2, 1, 6), pair[1]))


class Awkward(nn.Module):
    """An input that leaves again, a constant, an output called as an input is, and arguments that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = True) -> dict[str, Tensor]:
        y = self.layer(input=x)
        return {"x": y, **({"same": x} if flag else {}), "places": torch.arange(4)}


@pytest.mark.parametrize("flag", [False, True], ids=["", "passes"])
@pytest.mark.parametrize(
    ("to", "precision"), [(to, precision) for to in TARGETS for precision in (FP32, INT8)]
)
def test_what_models_also_take_and_return(tmp_path: Path, to: str, precision: str, flag: bool) -> None:
    available(to)
    if flag and (to == "coreml" or (to, precision) == ("openvino", INT8)):
        pytest.skip("its converter, or its quantiser, fails on a network that returns what it was given")
    target, model, x = find_target(to), Awkward().eval(), torch.randn(8, 6)
    made = sned.export(
        model, (x, None, flag), calibration=[(x, None, flag)], to=to, quantize=precision,
        out=tmp_path / f"m{target.suffix}", runs=0,
    )  # fmt: skip
    assert made.inputs == ("x",)
    assert "x" not in made.outputs
    with torch.no_grad():
        expected = list(model(x, None, flag).values())
    for one, other in zip(made.module()(x), expected, strict=True):
        torch.testing.assert_close(
            one, other, atol=1e-4 if precision == FP32 else 0.05, rtol=0, check_dtype=False
        )
