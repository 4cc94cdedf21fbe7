"""Random inputs stand for the example where there are no others."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sned import Plan, apply, sparsify, trace
from sned.graph.example import describe, named_tensors, tensors_in
from sned.saliency.synflow import synaptic_flow
from tests.graph.oracle import call, lively, state

SENTENCE = torch.tensor([[101, 2023, 2003, 102, 300, 2999]])
PADDED = torch.tensor([[101, 2023, 2003, 102, 0, 0]])


def drawn(inputs: Tensor, count: int = 2000) -> Tensor:
    """Random rows like those of the example."""
    (rows,), _ = describe(inputs).random(count)
    assert isinstance(rows, Tensor)
    return rows


def test_each_column_of_integers_keeps_within_its_own_range() -> None:
    rows = drawn(torch.tensor([[3, 0, 700], [1, 40, 2], [2, 7, 900]]))
    assert rows.amin(0).tolist() == [0, 0, 0]
    assert rows[:, :2].amax(0).tolist() == [3, 40]
    assert 880 < int(rows[:, 2].max()) <= 900
    assert rows.dtype == torch.int64


@pytest.mark.parametrize("ids", [SENTENCE, PADDED])
def test_one_row_of_ids_gives_rows_that_differ(ids: Tensor) -> None:
    rows = drawn(ids)
    assert len(rows[:, 1].unique()) > 1000
    assert bool((rows <= ids).all())


@pytest.mark.parametrize("low", [0, 1])
def test_a_mask_is_either_all_ones_or_any(low: int) -> None:
    rows = drawn(torch.tensor([[1, 1, 1, low]]))
    assert rows.unique().tolist() == [0, 1][low:]
    assert drawn(torch.tensor([[True, False]])).dtype == torch.bool


class Tables(nn.Module):
    """Columns index tables of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many, self.head = nn.Embedding(4, 8), nn.Embedding(900, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.few(ids[:, 0]) + self.many(ids[:, 1])))


def test_ranges_go_into_a_plan_and_out_of_it() -> None:
    model, ids = lively(Tables()), torch.tensor([[3, 899], [0, 12]])
    graph = trace(model, ids)
    plan = graph.plan({graph.groups[0].name: [0]})
    assert Plan.from_json(plan.to_json()).example == describe(ids)
    flow = synaptic_flow(graph, state(model))
    assert [int(flow[f"{name}.weight"].count_nonzero() > 0) for name in ("few", "many", "head")] == [1, 1, 1]


@pytest.mark.parametrize("ids", [SENTENCE, PADDED])
def test_zeros_from_random_ids_do_for_other_ids(ids: Tensor) -> None:
    model = lively(nn.Sequential(nn.Embedding(3000, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)))
    other = torch.randint(0, 3000, (64, 6))
    sparse = sparsify(model, ids, sparsity=0.5)
    wanted = call(model, other)
    assert float((call(sparse.model, other) - wanted).norm() / wanted.norm()) < 0.05


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, Tensor]
    cache: None = None


class Base:
    pass


class Holding(Base):
    __slots__ = ("scores",)

    def __init__(self, logits: Tensor, parts: list[object], scores: Tensor) -> None:
        self.logits, self.parts, self.scores = logits, parts, scores


def test_outputs_are_named_by_the_keys_that_lead_to_them() -> None:
    one = torch.zeros(1)
    names = lambda value: [name for name, _ in named_tensors(value)]  # noqa: E731
    assert names(one) == ["output"]
    assert names((one, one)) == ["output_0", "output_1"]
    assert names({"logits": one, "none": None}) == ["logits"]
    assert names(Output(one, (one, one))) == ["logits", "hidden_0", "hidden_1"]
    assert names(Pair(one, [one])) == ["left", "right_0"]
    assert names({"all": Holding(one, [one, Holding(one, [], one)], one)}) == [
        "all_logits",
        "all_parts_0",
        "all_scores",
    ]
    assert names(3) == names(nn.Linear(1, 1)) == []


def test_tensors_come_in_the_order_of_the_arguments() -> None:
    a, b = torch.zeros(1), torch.ones(2)
    assert [t.shape[0] for t in tensors_in(({"k": a}, None, [b]))] == [1, 2]


class Looks(nn.Module):
    """Looks up words and kinds of words in tables of their own, and numbers in a third that it indexes by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(500, 8), nn.Embedding(3, 8)
        self.numbers, self.head = nn.Parameter(torch.randn(40, 8)), nn.Linear(8, 2)

    def forward(self, ids: Tensor, kinds: Tensor, numbers: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids.long()) + self.kinds(kinds) + self.numbers[numbers[:, 0]][:, None]
        return self.head((x * mask[..., None]).mean(1))


ZEROS = torch.zeros(2, 5, dtype=torch.int64)


def test_ids_of_one_value_range_over_the_tables_that_they_index() -> None:
    graph = trace(Looks(), (ZEROS.int(), ZEROS, torch.zeros(2, 2, dtype=torch.int64), ZEROS))
    ids, kinds, numbers, mask = graph.example.random(400)[0]
    assert (int(ids.min()), 480 < int(ids.max()) < 500, ids.dtype) == (0, True, torch.int32)
    assert kinds.unique().tolist() == [0, 1, 2]
    assert numbers.unique().tolist() == list(range(40))
    assert not mask.any()
    again = trace(Looks(), graph.example.random(2)[0])
    assert again.fingerprint == graph.fingerprint


def test_ids_that_tell_their_range_keep_to_it() -> None:
    graph = trace(Looks(), (ZEROS + torch.arange(5), ZEROS, torch.zeros(2, 2, dtype=torch.int64), ZEROS))
    ids, kinds, numbers, _ = graph.example.random(400)[0]
    assert ids.amax(0).tolist() == [0, 1, 2, 3, 4]
    assert not kinds.any()
    assert not numbers.any()


def test_a_plan_made_from_ids_of_one_value_is_applied_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    plan = trace(model, ZEROS).plan({"1": [0, 3]})
    small = apply(model, Plan.from_json(plan.to_json()))
    with torch.no_grad():
        model[1].weight[[0, 3]], model[1].bias[[0, 3]] = 0.0, 0.0
    ids = torch.arange(50).reshape(5, 10)
    torch.testing.assert_close(small(ids), model(ids))


def test_ids_of_one_value_are_thinned_on_many() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    found = sparsify(model, ZEROS, pattern="2:4")
    assert int((found.model[1].weight == 0).sum()) == 12 * 16 // 2
