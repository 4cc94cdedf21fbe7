import copy
import sys

import pytest
import torch
from torch import nn

import sned
from sned.calibration import Divergence, calibrate, divergence
from sned.errors import CalibrationError, PlanError, SurgeryError
from sned.graph.replay import Replay, slice_state
from sned.graph.trace import state_of, trace
from sned.repair import load_state, repair
from sned.repair.repair import PLAIN, Candidate, _best
from sned.surgery import apply, masks_of
from sned.surgery.masks import hold_masks
from tests.repair.networks import Routed, block, images

REMOVED = {"stem": [0, 2], "conv1": [1, 2, 3]}


def test_the_best_candidate_on_held_out_inputs_is_returned() -> None:
    model, x = block(), images(100)
    graph = trace(model, x[:2])
    plan = graph.plan(REMOVED)
    calibration = calibrate(graph, state_of(model), [x])
    state, report = repair(graph, state_of(model), plan, calibration)
    assert (report.fitted, report.judged) == (80, 20)
    assert [c.name for c in report.candidates][:3] == [PLAIN, "least squares", "BatchNorm re-estimated"]
    assert len(report.candidates) == 5
    assert report.after.key <= min(c.divergence.key for c in report.candidates) * 1.05
    assert report.after.key < report.before.key
    assert report.chosen in report.note
    with torch.no_grad():
        got = Replay(graph, state, plan, cut=True).run(x[80:])[0][0]
        small = apply(model, plan)
        load_state(small, state)
        torch.testing.assert_close(small(x[80:]), got, atol=1e-5, rtol=1e-4)


def test_of_a_large_network_fewer_inputs_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(), images(300)
    graph = trace(model, x[:2])
    calibration = calibrate(graph, state_of(model), [x])
    monkeypatch.setattr(sys.modules["sned.repair.repair"], "MACS", 40 * calibration.macs)
    _, report = repair(graph, state_of(model), graph.plan(REMOVED), calibration)
    assert (report.fitted, report.judged) == (240, 40)


def judged(**keys: float) -> list[Candidate]:
    return [
        Candidate(name.replace("_", " "), Divergence(None, None, None, key)) for name, key in keys.items()
    ]


def test_moved_statistics_must_be_clearly_better() -> None:
    assert _best(judged(as_cut=2.0, least_squares=1.0, moved=0.97)) == "least squares"
    assert _best(judged(as_cut=2.0, least_squares=1.0, moved=0.9)) == "moved"
    assert _best(judged(as_cut=0.99, least_squares=1.0, moved=1.2)) == "as cut"


def test_repair_never_does_worse_than_the_cut_on_what_decides() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    graph = trace(model, torch.zeros(2, 4))
    calibration = calibrate(graph, state_of(model), [torch.randn(30, 4)])
    for unit in range(3):
        _, report = repair(graph, state_of(model), graph.plan({"0": [unit]}), calibration)
        assert report.after.key <= report.before.key
        assert [c.name for c in report.candidates] == [PLAIN, "least squares"]


class Recurrent(nn.Module):
    """Units 4 to 7 of the recurrent layer repeat units 0 to 3, and are read otherwise."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            for tensor in self.layer.parameters():
                gates = tensor.view(-1, 8, *tensor.shape[1:])
                gates[:, 4:] = gates[:, :4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units_that_others_repeat_are_made_up_for_entirely(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(kind).eval(), torch.randn(200, 6, 3)
    graph = trace(model, x[:2])
    plan = graph.plan({graph.groups[0].name: [4, 1, 6, 3]})
    state, report = repair(graph, state_of(model), plan, calibrate(graph, state_of(model), [x]))
    assert report.after.key < 1e-4 * report.before.key
    assert not any("Not solved for" in note for note in report.notes)
    small = apply(model, plan)
    load_state(small, state)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), atol=5e-3, rtol=0)


def test_what_is_not_solved_for_is_named_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            there = self.inner(x).tanh()
            return self.head((there @ self.inner.weight).tanh() + self.inner(there).tanh())

    model, x = Tied().eval(), torch.randn(60, 8)
    graph = trace(model, x[:2])
    calibration = calibrate(graph, state_of(model), [x])
    _, report = repair(graph, state_of(model), graph.plan({}), calibration)
    assert any(
        "other kinds of ops read it too, it is too wide, or values pick its rows: inner.weight." in note
        for note in report.notes
    )


def test_layers_whose_rows_are_picked_by_values_stay_as_cut_and_the_others_are_solved() -> None:
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(200, 6)
    graph = trace(model, x[:2])
    plan = graph.plan({"stem": list(range(0, 16, 2))})
    state, report = repair(graph, state_of(model), plan, calibrate(graph, state_of(model), [x]))
    assert {"stem", "router", "head"} <= {solved.name for solved in report.consumers}
    [note] = [note for note in report.notes if "Not solved for" in note]
    assert "values pick its rows: experts." in note
    kept = slice_state(state_of(model), plan)
    left = [f"experts.{n}.weight" for n in range(4) if f"experts.{n}.weight" in note]
    assert left
    assert all(torch.equal(state[name], kept[name]) for name in left)


def test_few_inputs_do_both_and_that_is_said() -> None:
    model = block()
    graph = trace(model, images(2))
    calibration = calibrate(graph, state_of(model), [images(3)])
    _, report = repair(graph, state_of(model), graph.plan(REMOVED), calibration)
    assert (report.fitted, report.judged) == (3, 3)
    assert any("Only 3 calibration inputs" in note for note in report.notes)
    assert any("Few patches for 1 layer (head first)" in note for note in report.notes)


def test_random_inputs_leave_the_statistics_alone_and_that_is_said() -> None:
    model = block()
    graph = trace(model, images(2))
    calibration = calibrate(graph, state_of(model), None, limit=64)
    _, report = repair(graph, state_of(model), graph.plan(REMOVED), calibration)
    assert [c.name for c in report.candidates] == [PLAIN, "least squares"]
    assert any("random inputs" in note for note in report.notes)


def test_constant_channels_and_dead_inputs_are_survived() -> None:
    model = block()
    with torch.no_grad():
        model.conv1.weight[4] = 0.0
        model.bn1.weight[4] = 0.0
        model.bn2.weight[2] = 0.0
    graph = trace(model, images(2))
    calibration = calibrate(
        graph, state_of(model), [images(40) * torch.tensor([1.0, 0.0, 1.0])[:, None, None]]
    )
    state, report = repair(graph, state_of(model), graph.plan(REMOVED), calibration)
    assert all(bool(torch.isfinite(t).all()) for t in state.values())
    assert report.after.key < report.before.key


def test_tied_weights_come_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(4, 6)
            self.second.weight = self.first.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.first(x) + self.second(x)).relu())

    model = Tied().eval()
    x = torch.randn(40, 4)
    graph = trace(model, x[:2])
    plan = graph.plan({graph.groups[0].name: [0, 1]})
    calibration = calibrate(graph, state_of(model), [x])
    state, _ = repair(graph, state_of(model), plan, calibration)
    assert "second.weight" not in state
    small = apply(model, plan)
    load_state(small, state)
    with torch.no_grad():
        torch.testing.assert_close(small(x), Replay(graph, state, plan, cut=True).run(x)[0][0])
    assert small.first.weight is small.second.weight


def test_what_does_not_fit_is_refused() -> None:
    model, other = block(), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval()
    graph, wrong = trace(model, images(2)), trace(other, torch.zeros(2, 4))
    plan = graph.plan(REMOVED)
    calibration = calibrate(wrong, state_of(other), None, limit=8)
    with pytest.raises(CalibrationError, match="was made for another"):
        repair(graph, state_of(model), plan, calibration)
    with pytest.raises(PlanError, match="made for"):
        repair(wrong, state_of(other), plan, calibration)
    cut = slice_state(state_of(model), plan)
    before = model.conv1.weight.detach().clone()
    with pytest.raises(SurgeryError, match=r"has shape \[.*Nothing was changed"):
        load_state(model, cut)
    assert torch.equal(model.conv1.weight, before)


def test_zeros_of_a_masked_network_stay_and_the_others_answer_for_them() -> None:
    model, x = block(), images(200)
    generator = torch.Generator().manual_seed(0)
    names = ("conv1.weight", "conv2.weight", "head.weight")
    hold_masks(model, {n: torch.rand(model.get_parameter(n).shape, generator=generator) < 0.6 for n in names})
    graph = trace(model, x[:2])
    plan = graph.plan({group.name: [1, 3] for group in graph.groups})
    calibration = calibrate(graph, state_of(model), [x])
    state, report = repair(graph, state_of(model), plan, calibration)
    small = apply(model, plan)
    load_state(small, state)
    for name, mask in masks_of(small).items():
        assert bool((~mask).any())
        assert not bool(state[name][~mask].any())
    with torch.no_grad():  # what was judged is what is handed over, and what a copy makes of it
        told = divergence([model(x[160:])], [copy.deepcopy(small)(x[160:])])
    assert report.judged == 40
    assert told.key == pytest.approx(report.after.key, rel=1e-3)
    assert report.after.key < 0.5 * report.before.key


class Table(nn.Module):
    """A table of positions in a buffer that goes through layers of its own, under a causal mask; one head is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(6, 2))
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        self.inner, self.outer = nn.Linear(2, 32), nn.Linear(32, 16)
        self.embed, self.wide, self.head = nn.Linear(12, 16), nn.Linear(16, 64), nn.Linear(64, 5)
        self.unread = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.outer(self.inner(self.table).relu())
        x = self.wide((x @ x.transpose(1, 2) + self.mask).softmax(-1) @ x).relu()
        self.unread(x)
        return self.head(x).mean(1)


def test_layers_that_read_buffers_and_layers_that_nobody_reads() -> None:
    torch.manual_seed(0)
    model, x = Table().eval(), torch.randn(128, 6, 12)
    result = sned.prune(model, x[:4], budget=sned.Budget(sparsity=0.5, device="pixel-9"), calibration=[x])
    assert any(note.startswith("Repair chose 'least squares'") for note in result.report.notes)
    assert result.model.outer.in_features == 16
    sparse = sned.sparsify(model, x[:4], sparsity=0.5, calibration=[x])
    assert all(value > 0 for value in sparse.zeros.values())
