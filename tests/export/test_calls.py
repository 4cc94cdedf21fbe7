from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.errors import ExampleError
from sned.export.calls import Call, call_of, row_axes
from sned.export.capture import Subject
from sned.export.exported import Deployed
from sned.graph.example import describe


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
    tensor = torch.ones(1)
    like = describe(tensor).leaves()[0]
    call = Call(("x", "y"), {"['x']": like, "['y']": like})
    with pytest.raises(ExampleError, match=match):
        call.ordered([tensor for _ in args], dict.fromkeys(kwargs, tensor))


def test_tensors_are_of_the_sizes_and_kinds_of_the_example() -> None:
    ids, table = torch.tensor([[3, 4], [5, 6]]), torch.ones(3, 4)
    call = call_of(Subject(nn.Bilinear(1, 1, 1)), (ids, table))
    for given in (ids[:1], ids.int(), torch.ones(5, 2).bool()):
        (taken, _) = call.ordered((given, table.double()), {})
        assert taken.dtype == torch.int64
        assert taken.tolist() == given.tolist()
    for given, match in (
        (
            torch.ones(2, 3).long(),
            r"takes int64\[any, 2\] as \['input1'\], .*, got int64\[2, 3\]\. Give it such",
        ),
        (torch.ones(2, 2), r"int64\[any, 2\].* got float32\[2, 2\]"),
        (torch.tensor(1), r"int64\[any, 2\].* got int64\[\]"),
    ):
        with pytest.raises(ExampleError, match=match):
            call.ordered((given, table), {})
    with pytest.raises(ExampleError, match=r"float32\[3, 4\] as \['input2'\], .* got float32\[5, 4\]"):
        call.ordered((ids, torch.ones(5, 4)), {})


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
    """Rows first, rows second, rows that became several, and a constant."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x.T, x.reshape(-1, 2), torch.arange(4)


class AsTheModel:
    """A file of a model that takes so many rows, no more and no fewer."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        self.model, self.batch = model, batch

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        assert len(inputs[0]) == self.batch
        outputs = self.model(*map(torch.from_numpy, inputs))
        return [output.detach().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def file_of(model: nn.Module, *example: Tensor) -> Deployed:
    subject = Subject(model)
    call = call_of(subject, example, row_axes(subject, example))
    return Deployed(AsTheModel(model, len(example[0])), len(example[0]), call)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_rows_are_joined_along_the_axis_on_which_an_output_has_them(batch: int) -> None:
    assert row_axes(Subject(Shapes()), torch.randn(batch, 6)) == (0, 1, 0, None)
    x = torch.randn(5, 6)
    for one, other in zip(file_of(Shapes(), torch.randn(batch, 6))(x), Shapes()(x), strict=True):
        assert torch.equal(one, other)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


class ByColumns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.T.flatten()  # all first numbers, then all second ones


class StepsFirst(nn.Module):
    """What comes first are the steps of a sequence, so that each answer depends on those before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.LSTM(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, None])[0]


@pytest.mark.parametrize("model", [Mean(), ByColumns(), StepsFirst()], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("batch", [1, 2])
def test_answers_that_come_from_several_rows_are_told_at_the_files_batch_alone(
    model: nn.Module, batch: int
) -> None:
    file, x = file_of(model, torch.randn(batch, 6)), torch.zeros(5, 6)  # each run answers the same
    torch.testing.assert_close(file(x[:batch]), model(x[:batch]))
    match = rf"{batch} rows at a time, got 5.*answers to some rows depend on others.*example of 5"
    with pytest.raises(ExampleError, match=match):
        file(x)
    with pytest.raises(ExampleError, match="at least one row"):
        file(x[:0])


def test_a_model_of_one_batch_size_has_rows_nowhere() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3, -1).sum(2)

    assert row_axes(Subject(Fixed()), torch.randn(2, 12)) is None


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        return mask @ (x + places)


def test_the_example_tells_which_inputs_hold_the_batch() -> None:
    mask, places = torch.randn(4, 4), torch.arange(4.0)[None]
    file = file_of(Masked(), torch.randn(1, 4, 3), mask, places[..., None])
    x = torch.randn(4, 4, 3)  # as many as the mask has rows
    torch.testing.assert_close(file(x, mask, places[..., None]), Masked()(x, mask, places[..., None]))
    with pytest.raises(ExampleError, match=r"equally many rows, got \[2, 4\]"):
        file(x, mask, torch.zeros(2, 4, 1))
