from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.errors import ExampleError
from sned.export.calls import Call, call_of, run_rows
from sned.export.capture import Subject
from sned.export.exported import Deployed


class Pair(nn.Module):
    def forward(self, left: Tensor, right: dict[str, Tensor], *more: Tensor, plus: float = 0.0) -> Tensor:
        return left - 2 * right["a"] + 3 * right["b"] + sum(more) + plus


class InTurn:
    """A file of `Pair` that takes its tensors one after the other."""

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        left, a, b, more = inputs
        return [left - 2 * a + 3 * b + more]


@pytest.fixture
def four() -> list[Tensor]:
    return list(torch.randn(4, 2, 3))


def test_arguments_go_by_their_names_and_not_by_the_order_of_the_call(four: list[Tensor]) -> None:
    left, a, b, more = four
    call = call_of(Subject(Pair()), (left, {"a": a, "b": b}, more))
    expected = Pair()(left, {"a": a, "b": b}, more)
    file = Deployed(InTurn(), None, call)
    torch.testing.assert_close(file(left, {"b": b, "a": a}, more, plus=0.0), expected)

    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - 2 * right

    for example in ((left, a), {"left": left, "right": a}, {"right": a, "left": left}):
        call = call_of(Subject(Two()), example)
        for args, kwargs in (((left, a), {}), ((), {"right": a, "left": left}), ((left,), {"right": a})):
            got = dict(zip(call.tensors, call.ordered(args, kwargs), strict=True))
            assert got["['left']"] is left
            assert got["['right']"] is a


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        ((1,), {}, r"takes the tensors \['x'\], \['y'\], got \['x'\]\. Call it with the arguments"),
        ((1, 2), {"z": 3}, r"takes the tensors \['x'\], \['y'\], got \['x'\], \['y'\], \['z'\]"),
        ((1, 2), {"y": 3}, r"given once, got 'y' by position and by name"),
        ((), {}, "got none"),
    ],
)
def test_other_tensors_than_the_file_takes_are_refused(
    args: tuple[int, ...], kwargs: dict[str, int], match: str
) -> None:
    call = Call(("x", "y"), ("['x']", "['y']"), (0,))
    tensor = torch.ones(1)
    with pytest.raises(ExampleError, match=match):
        call.ordered([tensor for _ in args], dict.fromkeys(kwargs, tensor))


class Flagged(nn.Module):
    def forward(
        self, x: Tensor, sizes: list[Any], causal: bool = True, *, scale: float | None = None
    ) -> Tensor:
        return x


def test_flags_are_those_of_the_example_or_are_refused() -> None:
    x = torch.ones(2)
    call = call_of(Subject(Flagged()), (x, [x, 4, "up"], False))
    for args, kwargs in (
        ((x, [x, 4, "up"]), {}),  # what is left out is as it was exported
        ((x, [x, 4, "up"], False), {"scale": None}),  # the default is what it was exported with
    ):
        assert call.ordered(args, kwargs) == [x, x]
    for args, kwargs, match in (
        (
            (x, [x, 4, "up"], True),
            {},
            r"its example gave as 'causal', False, got True\. Leave the argument out",
        ),
        ((x, [x, 4, "up"]), {"scale": 0.5}, "'scale', None, got 0.5"),
        ((x, [x, 3, "up"]), {}, r"'sizes', \[1\]: 4, \[2\]: 'up', got \[1\]: 3"),
        ((x, [x]), {}, r"'sizes', \[1\]: 4, \[2\]: 'up', got nothing"),
        ((x, [x, 4, "up"]), {"scaled": 2}, "'scaled', nothing, got 2"),
    ):
        with pytest.raises(ExampleError, match=match):
            call.ordered(args, kwargs)


class Shapes(nn.Module):
    """Rows first, rows second, rows that became several, none, and a constant."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x.T, x.reshape(-1, 2), x.mean(), torch.arange(4)


class AsTheModel:
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        (x,) = inputs
        assert len(x) == self.batch
        return [output.numpy() for output in Shapes()(torch.from_numpy(x))]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_rows_are_joined_along_the_axis_on_which_an_output_has_them(batch: int) -> None:
    call = call_of(Subject(Shapes()), torch.randn(batch, 6))
    assert call.axes == (0, 1, 0, None, None)
    x = torch.ones(5, 6) * torch.arange(6)  # equal means
    got = run_rows(AsTheModel(batch), [x.numpy()], batch, call)
    for one, other in zip(got, Shapes()(x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_comes_from_all_rows_together_is_told_at_the_files_batch_alone() -> None:
    call, x = call_of(Subject(Shapes()), torch.randn(2, 6)), torch.randn(5, 6)
    assert run_rows(AsTheModel(2), [x[:2].numpy()], 2, call)[3] == x[:2].mean()
    with pytest.raises(
        ExampleError, match=r"2 rows at a time, got 5.*all rows of a run together.*example of 5"
    ):
        run_rows(AsTheModel(2), [x.numpy()], 2, call)
    with pytest.raises(ExampleError, match="at least one row"):
        run_rows(AsTheModel(2), [x[:0].numpy()], 2, call)


def test_a_model_of_one_batch_size_has_rows_nowhere() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3, -1).sum(2)

    assert call_of(Subject(Fixed()), torch.randn(2, 12)).axes == (None,)
