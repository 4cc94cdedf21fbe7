"""Remembered calls give what the op itself gives; what writes, returns views or holds values is never remembered."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sned.graph import memo

ATEN = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layout(value: Any) -> list[tuple[Any, ...]]:
    return [(t.shape, t.stride(), t.dtype) for t in (value if isinstance(value, Sequence) else (value,))]


CALLS = [
    (ATEN.native_batch_norm.default, (empty(2, 4, 3, 3), *(empty(4) for _ in range(4)), False, 0.1, 1e-5)),
    (
        ATEN.convolution.default,
        (empty(2, 4, 9, 9), empty(6, 4, 3, 3), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    (ATEN.add.Tensor, (empty(2, 3).t(), empty(3, 2))),
    (ATEN.mul.Scalar, (empty(5, dtype=torch.int64), 0.5)),
    (ATEN.mul.Scalar, (empty(5, dtype=torch.int64), 2)),
    (ATEN.mul.Scalar, (empty(5, dtype=torch.int64), True)),
    (ATEN.topk.default, (empty(3, 8), 2)),
    (ATEN.cat.default, ([empty(2, 3), empty(4, 3)],)),
    (ATEN.cat.default, ([empty(2, 3), empty(2, 4)], 1)),
]


@pytest.mark.parametrize(("func", "args"), CALLS, ids=lambda value: str(value)[:30])
def test_the_first_and_the_second_call_are_as_the_op_has_it(func: Any, args: tuple[Any, ...]) -> None:
    expected = layout(func(*args))
    for _ in range(2):
        assert layout(memo.call(func, args, {})) == expected


def test_views_share_their_memory_and_writes_are_carried_out() -> None:
    x = torch.zeros(4)
    for _ in range(2):
        view = memo.call(ATEN.view.default, (x, [2, 2]), {})
        assert view.data_ptr() == x.data_ptr()
        memo.call(ATEN.add_.Scalar, (x, 1.0), {})
    assert x.tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("func", "args"),
    [(ATEN.silu_.default, ()), (ATEN.add_.Tensor, (empty(3),)), (ATEN.mul_.Scalar, (2.0,))],
)
def test_writing_into_a_tensor_without_values_gives_that_tensor(func: Any, args: tuple[Any, ...]) -> None:
    for _ in range(2):
        x = empty(2, 3)
        assert memo.call(func, (x, *args), {}) is x


def test_what_may_not_be_written_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError):
            memo.call(ATEN.add_.Tensor, (empty(1, 3), empty(2, 3)), {})


def test_an_op_that_turns_a_tensor_in_place_is_carried_out() -> None:
    for _ in range(2):
        x = empty(2, 3)
        assert memo.call(ATEN.t_.default, (x,), {}).shape == (3, 2)
        assert x.shape == (3, 2)


def test_values_are_never_remembered() -> None:
    for value in (1.0, 2.0):
        made = memo.call(ATEN.mul.Scalar, (torch.full((2,), value), 3.0), {})
        assert made.tolist() == [3 * value] * 2


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "LIMIT", 4)
    for size in range(1, 12):
        assert memo.call(ATEN.relu.default, (empty(size),), {}).shape == (size,)
    assert len(memo._known) <= 4
