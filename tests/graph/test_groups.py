"""Which units go together: expectations written out by hand for networks that one can hold in the head."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from sned import Graph, Group, apply, trace
from sned.graph.ir import Term
from tests.graph.networks import (
    NETWORKS,
    Gated,
    Modulated,
    Residual,
    Retention,
    SharedTwice,
    StateSpace,
    Tied,
    tokens,
)
from tests.graph.oracle import call, distance, example_of, lively, zeroed
from tests.graph.random_cnn import SIDE, RandomCnn, Step, programs

IMAGE = torch.randn(2, 3, 8, 8)
ROW = torch.randn(2, 6)


def cut_at(group: Group) -> dict[tuple[str, int], list[list[int]]]:
    """`{(parameter, axis): positions}` of a group."""
    return {(s.parameter, s.axis): s.positions.tolist() for s in group.slices}


def parts(group: Group) -> list[list[int]]:
    """The units of each cell, in order of their first."""
    return sorted(np.flatnonzero(group.cells == cell).tolist() for cell in range(group.cell_count))


def singles(count: int, start: int = 0) -> list[list[int]]:
    """One position a unit."""
    return [[i] for i in range(start, start + count)]


def test_a_layer_and_its_reader() -> None:
    graph = trace(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), ROW)
    (group,) = graph.groups
    assert (group.name, group.size, group.exact, group.cell_count) == ("0", 4, True, 1)
    assert cut_at(group) == {
        ("0.weight", 0): singles(4),
        ("0.bias", 0): singles(4),
        ("2.weight", 1): singles(4),
    }
    (frozen,) = graph.frozen
    assert (frozen.name, frozen.size, frozen.reason) == ("2", 3, "output of the model")


def test_a_shortcut_ties_what_it_adds() -> None:
    graph = trace(Residual(), IMAGE)
    by_name = {group.name: set(cut_at(group)) for group in graph.groups}
    assert by_name["a1"] == {("a1.weight", 0), ("a1.bias", 0), ("a2.weight", 1)}
    statistics = {(f"bn.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert by_name["stem"] == statistics | {
        ("stem.weight", 0), ("a1.weight", 1), ("a2.weight", 0), ("a2.bias", 0), ("b1.weight", 1), ("down.weight", 1),
    }  # fmt: skip
    assert [group.name for group in graph.groups] == ["stem", "a1", "down", "b1"]
    assert {("down.weight", 0), ("b2.weight", 0), ("fc.weight", 1)} <= by_name["down"]


def test_a_concatenation_shifts_positions() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 2), nn.Linear(6, 3), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    a, b = trace(Cat(), ROW).groups
    assert cut_at(a)[("c.weight", 1)] == [[0], [1]]
    assert cut_at(b)[("c.weight", 1)] == [[2], [3], [4]]


def test_a_flattened_channel_owns_a_run_of_columns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    (group,) = trace(model, IMAGE).groups
    assert cut_at(group)[("2.weight", 1)] == [list(range(36)), list(range(36, 72))]


def test_a_depthwise_convolution_goes_with_its_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    by_size = {group.size: group for group in trace(model, IMAGE).groups}
    whole = cut_at(by_size[4])
    assert whole[("0.weight", 0)] == singles(4)
    assert whole[("1.weight", 0)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert ("1.weight", 1) not in whole
    within = by_size[8]
    assert cut_at(within)[("2.weight", 1)] == singles(8)
    assert parts(within) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_grouped_convolution_loses_whole_groups_or_equally_many_in_each() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1))
    groups = {(g.name.partition("#")[0], g.size): g for g in trace(model, IMAGE).groups}
    whole = cut_at(groups[("0", 2)])
    assert whole[("0.weight", 0)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert whole[("1.weight", 0)] == [[0, 1, 2], [3, 4, 5]]
    inputs = cut_at(groups[("0", 4)])
    assert inputs[("0.weight", 0)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert inputs[("1.weight", 1)] == singles(4)
    assert parts(groups[("1", 6)]) == [[0, 1, 2], [3, 4, 5]]


def test_heads_and_the_dimensions_in_them_are_groups_of_their_own() -> None:
    model, inputs = NETWORKS["separate_projections"]()
    groups = trace(model, example_of(inputs)).groups
    embed, *rest = groups
    assert (embed.name, embed.size) == ("embed", 12)
    heads = next(g for g in rest if cut_at(g).get(("out.weight", 1), [[]])[0] == [0, 1, 2, 3])
    assert cut_at(heads)[("out.weight", 1)] == [[4 * h + d for d in range(4)] for h in range(4)]
    assert {p for p, _ in cut_at(heads)} == {
        "q.weight",
        "q.bias",
        "k.weight",
        "k.bias",
        "v.weight",
        "v.bias",
        "out.weight",
    }
    dims = [g for g in rest if g is not heads]
    assert dims
    for group in dims:
        for s in group.slices:
            assert all(len({p % 4 for p in positions}) == 1 for positions in s.positions.tolist())


def test_gates_of_a_recurrent_layer_go_with_its_hidden_units() -> None:
    model, inputs = NETWORKS["lstm"]()
    group = next(g for g in trace(model, example_of(inputs)).groups if g.size == 8)
    cut = cut_at(group)
    gates = [[u, u + 8, u + 16, u + 24] for u in range(8)]
    assert cut[("cells.weight_ih_l0", 0)] == cut[("cells.weight_hh_l0", 0)] == gates
    assert cut[("cells.weight_hh_l0", 1)] == cut[("head.weight", 1)] == singles(8)


def test_a_glu_ties_the_halves() -> None:
    (group,) = trace(nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)), ROW).groups
    assert cut_at(group)[("0.weight", 0)] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_layer_called_twice_loses_what_it_reads_and_what_it_writes_together() -> None:
    graph = trace(SharedTwice(), IMAGE)
    (group,) = graph.groups
    assert cut_at(group)[("shared.weight", 0)] == cut_at(group)[("shared.weight", 1)] == singles(8)


def test_a_scale_that_follows_from_an_attribute_leaves_heads_and_dimensions_free() -> None:
    model, x = NETWORKS["attention_scaled_by_an_attribute"]()
    graph = trace(model, *x)
    expected = [("embed", 8), ("q", 3), ("q#2", 6), ("q#3", 2)]
    assert [(group.name, group.size) for group in graph.groups] == expected
    assert len(graph.rescales) == 1


def test_weights_that_are_viewed_again_are_cut_as_those_that_are_viewed_once() -> None:
    once, twice = (NETWORKS[name]() for name in ("einsum_heads", "einsum_heads_twice"))
    sizes = [
        [(group.size, group.cell_size) for group in trace(model, *x).groups] for model, x in (once, twice)
    ]
    assert sizes[0] == sizes[1] == [(4, 4), (6, 6)]


def test_tied_weights_are_one_parameter() -> None:
    graph = trace(Tied(), tokens())
    assert graph.aliases == {"head.weight": "embed.weight"}
    assert "head.weight" not in graph.parameters
    (group,) = graph.groups
    assert cut_at(group)[("embed.weight", 1)] == singles(8)


@pytest.mark.parametrize(
    ("model", "inputs", "exact"),
    [(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), ROW, True),
     (nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)), ROW, True),
     (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), ROW, False),
     (nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 3)), ROW, False),
     (nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 3)), ROW, False),
     (nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 3, 1)), IMAGE, True)],
)  # fmt: skip
def test_exactness(model: nn.Module, inputs: Tensor, exact: bool) -> None:
    (group,) = trace(model, inputs).groups
    assert group.exact is exact


def test_channels_in_the_groups_of_a_group_norm_are_not_exact() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 2, 1)), IMAGE)
    assert {g.size for g in graph.groups} == {4, 16}
    assert not next(g for g in graph.groups if g.size == 16).exact


class Stays(nn.Module):
    """One layer whose outputs something keeps from going, then one that can lose units."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = {
            "sort": lambda: y.sort(-1).values,
            "cumsum": lambda: y.cumsum(-1),
            "index": lambda: y[:, self.order],
            "input": lambda: y + x[:, :4],
            "grid": lambda: y * torch.arange(4, dtype=y.dtype, device=y.device),
            "fft": lambda: torch.fft.fft(y).abs(),
            "mask": lambda: y.masked_fill(torch.tensor([True, False, True, False], device=y.device), 0.0),
        }[self.kind]()
        return self.c(F.relu(self.b(y)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("sort", "sorted"), ("cumsum", "running sum"), ("index", "picked by an index tensor"), ("input", "fixed size"),
     ("grid", "fixed size"), ("fft", "Fourier transform"), ("mask", "fixed size")],
)  # fmt: skip
def test_what_cannot_go_stays_with_a_reason_and_the_rest_goes(kind: str, reason: str) -> None:
    graph = trace(Stays(kind), ROW)
    assert [group.name for group in graph.groups] == ["b"]
    (why,) = [frozen for frozen in graph.frozen if frozen.name == "a"]
    assert why.size == 4
    assert re.search(reason, why.reason)


def test_a_parameter_that_no_path_reads_is_named_and_never_cut() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.extra = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    graph = trace(Unread(), ROW)
    assert set(graph.unread) == {"extra.weight", "extra.bias"}
    assert not any(s.parameter.startswith("extra") for g in graph.groups for s in g.slices)


@pytest.mark.parametrize("rows", [16, 4096])
@pytest.mark.parametrize("scaled", [False, True])
def test_positions_beyond_the_example_are_never_cut(rows: int, scaled: bool) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)
            self.positions = nn.Parameter(torch.randn(rows, 4))
            self.register_buffer("mask", torch.rand(rows, rows))

        def forward(self, x: Tensor) -> Tensor:
            steps = x.shape[1]
            table = self.positions * 2 if scaled else self.positions
            return self.b(self.mask[:steps, :steps] @ (self.a(x) + table[:steps]))

    (group,) = trace(Positions(), torch.randn(2, 12, 6)).groups
    assert (group.size, set(cut_at(group))) == (
        4, {("a.weight", 0), ("a.bias", 0), ("positions", 1), ("b.weight", 1)},
    )  # fmt: skip


def test_parts_that_attributes_give_need_not_lose_in_proportion() -> None:
    graph = trace(StateSpace(), torch.randn(2, 3, 5))
    assert [(group.name, group.size) for group in graph.groups] == [
        ("enter", 4),
        ("enter#2", 8),
        ("enter#3", 6),
    ]


def test_the_batch_times_an_attribute_leaves_both_free() -> None:
    graph = trace(Modulated(), (torch.randn(2, 3, 5, 5), torch.randn(2, 4)))
    assert [(group.name, group.size) for group in graph.groups] == [("before", 8), ("weight", 6)]


def test_slices_by_one_attribute_lose_equally_many() -> None:
    (group,) = trace(Gated(), (torch.randn(2, 3, 6), torch.randn(2, 4, 6))).groups
    assert cut_at(group)[("condition.weight", 0)] == [[i, i + 8, i + 16, i + 24] for i in range(8)]


@pytest.mark.parametrize("start", [3, -3])
def test_what_is_cut_off_by_a_number_in_the_code_stays_and_the_rest_goes(start: int) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) + self.c(y[:, :start] if start > 0 else y[:, start:])

    graph = trace(Cut(), ROW)
    (group,) = graph.groups
    assert cut_at(group)[("a.weight", 0)] == singles(5, 3 if start > 0 else 0)
    (why,) = [frozen for frozen in graph.frozen if frozen.name == "a"]
    assert (why.size, why.reason) == (3, "cut at a number in the code")


def test_heads_go_with_the_groups_of_a_norm_that_takes_them_apart_again() -> None:
    x = torch.randn(2, 3, 5)
    model = lively(Retention())
    graph = trace(model, x)
    heads = next(group for group in graph.groups if group.size == 4)
    assert {("q.weight", 0), ("norm.weight", 0), ("out.weight", 1)} <= set(cut_at(heads))
    small, removed = apply(model, graph.plan({heads.name: [1, 2]})), {heads.name: [1, 2]}
    assert small.norm.num_groups == 2
    assert distance(call(small, x), zeroed(model, graph, removed, x)) < 1e-5


def test_terms_give_the_size_of_every_axis_under_any_choice() -> None:
    model, inputs = NETWORKS["grouped"]()
    graph = trace(model, example_of(inputs))
    kept = {group.index: group.size for group in graph.groups}
    for number, tensor in enumerate(graph.tensors):
        for axis, size in enumerate(tensor.shape):
            assert _size(graph, graph.terms(number, axis), kept) == size
    units = {
        g.name: [int(np.flatnonzero(g.cells == c)[0]) for c in range(g.cell_count)] for g in graph.groups
    }
    plan = graph.plan(units)
    kept = {g.index: g.size - len(units[g.name]) for g in graph.groups}
    for name, axes in plan.kept.items():
        for axis, indices in axes.items():
            assert _size(graph, graph.terms(graph.parameters[name], axis), kept) == len(indices)


def _size(graph: Graph, terms: tuple[Term, ...], kept: dict[int, int]) -> float:
    sizes = {group.index: group.size for group in graph.groups}
    return round(sum(t.count * float(np.prod([kept[g] / sizes[g] for g in t.groups])) for t in terms), 9)


def check_sound(graph: Graph) -> None:
    """What holds for the groups of every graph."""
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    for index, group in enumerate(graph.groups):
        assert graph.group(group.name) is group
        assert group.index == index
        assert group.size > 1
        assert group.cells.shape == (group.size,)
        assert len(set(np.bincount(group.cells).tolist())) == 1
        assert group.slices
        for s in group.slices:
            shape = graph.tensors[graph.parameters[s.parameter]].shape
            assert s.positions.shape[0] == group.size
            assert 0 <= s.positions.min() <= s.positions.max() < shape[s.axis]
            assert len(np.unique(s.positions)) == s.positions.size, f"{group.name}: units share positions"


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_sound(name: str) -> None:
    model, inputs = NETWORKS[name]()
    check_sound(trace(model, example_of(inputs)))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(programs())
def test_groups_of_random_networks_are_sound(program: tuple[Step, ...]) -> None:
    check_sound(trace(RandomCnn(program), torch.randn(2, 3, SIDE, SIDE)))


def test_a_loss_that_is_a_mean_notices_what_goes() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)
            self.classes = nn.Linear(6, 5)

        def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            return F.mse_loss(self.a(x), self.b(x)), F.cross_entropy(self.classes(x), target)

    graph = trace(Loss(), (ROW, torch.tensor([1, 3])))
    (group,) = graph.groups
    assert (group.size, group.exact) == (4, False)
    (why,) = [frozen for frozen in graph.frozen if frozen.name == "classes"]
    assert why.reason == "its classes are told by number"


def test_a_packed_sequence_keeps_its_width_free() -> None:
    model, inputs = NETWORKS["packed_sequence"]()
    assert ("embed", 8) in {(group.name, group.size) for group in trace(model, *inputs).groups}
