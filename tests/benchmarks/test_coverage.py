import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sned
from benchmarks import coverage, coverage_check, coverage_summary
from benchmarks.coverage_check import Record, check, chosen, difference, permuted, randomised, zeroed
from benchmarks.zoo import Network, find, networks, others, timm_models, transformers_models
from sned.errors import NotFoundError
from sned.graph.ir import Graph
from sned.graph.trace import state_of, trace


class Residual(nn.Module):
    """Two convolutions with a BatchNorm around a shortcut, which starts at zero as in the libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.fc((x + self.norm(self.inner(x))).mean((2, 3)))


def network(build: type[nn.Module] = Residual) -> Network:
    return Network("others", "mine", build, lambda batch: torch.randn(batch, 3, 8, 8))


def test_lists_have_the_lengths_that_they_claim() -> None:
    assert len(set(timm_models.SMALLEST)) == 98
    assert len(transformers_models.RECIPES) == 40


@pytest.mark.parametrize("name", [network.name for network in others.own()])
def test_own_networks_prune_correctly(name: str) -> None:
    own = next(network for network in others.own() if network.name == name)
    record = Record("others", name)
    check(own, record)
    assert record.correct
    assert record.parameters_left < 1
    assert record.groups > 0


def test_an_unknown_network_is_answered_with_close_names() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'bert'"):
        networks(["transformers"], ["bertt"])


def test_a_network_is_found_by_name() -> None:
    assert find("transformers", "gpt2").name == "gpt2"


def test_constant_weights_become_random_and_others_stay() -> None:
    model = Residual()
    before = model.stem.weight.clone()
    randomised(model)
    assert model.norm.weight.detach().std() > 0
    assert model.norm.running_mean.std() > 0
    assert torch.equal(model.stem.weight, before)


def test_removal_takes_equally_many_from_each_cell() -> None:
    group = SimpleNamespace(name="heads", size=12, cells=np.repeat([0, 1, 2], 4), cell_count=3, cell_size=4)
    units = chosen([group], 0.5, seed=1)["heads"]  # type: ignore[list-item]
    assert np.bincount(group.cells[units]).tolist() == [2, 2, 2]


def test_permuting_units_leaves_the_output_alone_but_a_wrong_permutation_does_not() -> None:
    torch.manual_seed(0)
    model, x = randomised(Residual().eval()), torch.randn(2, 3, 8, 8)
    graph = sned.trace(model, x)
    state = permuted(model, graph, seed=0)
    with torch.no_grad():
        right = torch.func.functional_call(model, state, x)
        wrong = torch.func.functional_call(model, {**state, "fc.weight": model.fc.weight}, x)
        assert difference([right], [model(x)]) < 1e-5
        assert difference([wrong], [model(x)]) > 1e-2


def test_zeroing_clears_the_removed_slices_and_no_others() -> None:
    model, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    graph = sned.trace(model, x)
    name = next(group.name for group in graph.groups if any(s.parameter == "fc.weight" for s in group.slices))
    state = zeroed(model, graph, graph.plan({name: [1, 5]}))
    assert torch.equal((state["fc.weight"] == 0).all(0).nonzero().ravel(), torch.tensor([1, 5]))
    assert all(state[key].shape == value.shape for key, value in state_of(model).items() if key in state)


class Softmax(Residual):
    """A softmax over the channels: no group of it is exact."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.fc(torch.softmax(x + self.norm(self.inner(x)), 1).mean((2, 3)))


def test_a_group_that_only_claims_to_be_exact_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def claimed(model: nn.Module, inputs: torch.Tensor) -> Graph:
        graph = trace(model, inputs)
        for group in graph.groups:
            object.__setattr__(group, "exact", True)
        return graph

    monkeypatch.setattr(sned, "trace", claimed)
    record = Record("others", "mine")
    with pytest.raises(AssertionError, match="differs from the zeroed original"):
        check(network(Softmax), record)
    assert not record.passes


def test_pruning_that_changes_nothing_is_called_vacuous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_check, "chosen", lambda groups, fraction, seed: {})
    with pytest.raises(AssertionError, match="vacuous"):
        check(network(), Record("others", "mine"))


def test_the_last_line_of_a_network_counts_and_a_torn_one_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    lines = [{"collection": "timm", "name": "a", "passes": passes} for passes in (False, True)]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"collection": "ti')
    assert coverage.latest(file) == {("timm", "a"): lines[1]}


@pytest.mark.parametrize(
    ("record", "flags", "expected"),
    [
        (None, {}, True),
        ({"passes": True}, {}, False),
        ({"passes": False}, {}, False),
        ({"passes": False}, {"failed": True}, True),
        ({"passes": True}, {"peer": True}, True),
        ({"passes": True, "peer_passes": False}, {"peer": True}, False),
        ({"passes": True}, {"again": True}, True),
    ],
)
def test_what_is_left_to_do(record: dict[str, bool] | None, flags: dict[str, bool], expected: bool) -> None:
    options = argparse.Namespace(**{"again": False, "failed": False, "peer": False, **flags})
    assert coverage._to_do(record, options) is expected


def test_summary_counts_and_compares() -> None:
    times = {"trace_s": 1.0, "plan_s": 0.5, "apply_s": 0.5, "peer_build_s": 1.0, "peer_prune_s": 5.0}
    good = {"collection": "timm", "name": "a", "passes": True, "correct": True, "parameters_left": 0.3}
    bad = {"collection": "timm", "name": "b", "passes": False, "error": "it broke"}
    text = coverage_summary.summary([{**good, **times, "peer_passes": True}, bad])
    assert "1 networks that both can do: 2.0 s with verification, Torch-Pruning 6.0 s (3.00x)" in text
    assert "timm:b: it broke" in text
