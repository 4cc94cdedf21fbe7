import pytest
import torch

from sned.export.structure import arrays, at_batch, batched, fresh
from sned.graph.example import batch_in


def test_rows_are_repeated_or_left_out_where_there_is_a_batch_axis() -> None:
    example = {"x": torch.arange(6.0).reshape(2, 3), "table": torch.ones(5, 3), "n": 4}
    assert batch_in(example) == 2
    larger = at_batch(example, 5, batched(example))
    assert larger["x"][:, 0].tolist() == [0, 3, 0, 3, 0]
    assert larger["table"].shape == (5, 3)
    assert larger["n"] == 4
    assert at_batch(example, 1, batched(example))["x"].shape == (1, 3)


def test_fresh_inputs_are_of_the_same_kind_and_repeatable() -> None:
    example = (torch.full((2, 1000), 7.0) + torch.randn(2, 1000), torch.tensor([[3, 9], [5, 3]]))
    reals, ids = fresh(example, 3, seed=1)
    assert reals.shape == (3, 1000)
    assert abs(float(reals.mean()) - 7) < 0.2
    assert abs(float(reals.std()) - 1) < 0.1
    assert set(ids.flatten().tolist()) <= {3, 5, 9}
    assert torch.equal(reals, fresh(example, 3, seed=1)[0])
    assert not torch.equal(reals, fresh(example, 3, seed=2)[0])


def test_columns_of_ids_stay_within_their_own_tables() -> None:
    tables = torch.nn.ModuleList([torch.nn.Embedding(12, 2), torch.nn.Embedding(40, 2)])
    drawn = fresh(torch.tensor([[9, 36]]), 50, seed=0)
    for column, table in enumerate(tables):
        table(drawn[:, column])  # fails on an id that is out of range
    assert set(drawn.flatten().tolist()) == {9, 36}


@pytest.mark.parametrize("none", [False, -torch.inf])
def test_a_mask_keeps_whole_rows(none: float) -> None:
    mask = torch.tensor([[True, none, none], [True, True, none]])
    drawn = fresh((torch.zeros(2, 3), mask), 20, seed=0)[1]
    rows = {tuple(row) for row in drawn.tolist()}
    assert rows <= {tuple(row) for row in mask.tolist()}


def test_arrays_have_the_shapes_of_their_tensors_and_numbers_that_numpy_knows() -> None:
    scalar, turned, coarse = arrays((torch.tensor(2.0), torch.ones(2, 3).T, torch.ones(2).bfloat16()))
    assert (scalar.shape, turned.shape, coarse.dtype) == ((), (3, 2), "float32")
    assert turned.flags.c_contiguous
