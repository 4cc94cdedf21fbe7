"""Rules for single groups: which counts they allow, and what they say to wrong names and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sned.errors import BudgetError, NotFoundError, PlanError
from sned.graph.trace import trace
from sned.search import Problem, Rules, search
from tests.search.cases import ChainCost, chain, grouped, random_scores

GRAPH = chain(8, 12, 16)


def ladders(**fields: object) -> list[list[int]]:
    """What each group of an 8-12-16 chain may keep."""
    return [ladder.tolist() for ladder in Rules.from_data(fields).choices(GRAPH)]


def test_without_rules_every_count_is_allowed() -> None:
    assert ladders()[0] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_cells_allow_only_multiples() -> None:
    assert [8, 6, 4, 2] in [ladder.tolist() for ladder in Rules().choices(grouped())]


def test_every_field() -> None:
    found = ladders(protect="0", at_least={"1": 10}, multiple_of=8)
    assert found == [[8], [12], [16, 8]]
    assert ladders(sparsity={"2": 0.5})[2] == [8]
    assert ladders(sparsity={"2": 0.4}, multiple_of={"2": 4})[2] == [12], "rounded towards keeping"


def test_names_beat_patterns_and_later_patterns_beat_earlier() -> None:
    assert ladders(at_least={"1": 5, "*": 7})[1][-1] == 5
    assert ladders(at_least={"*": 7, "[12]": 5})[1][-1] == 5


def test_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('protect = ["0"]\nmultiple_of = 4\n[sparsity]\n"2" = 0.75\n')
    assert [ladder.tolist() for ladder in Rules.from_toml(file).choices(GRAPH)] == [[8], [12, 8, 4], [4]]


def test_toml_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("protect = [")
    with pytest.raises(PlanError, match="must be TOML, but reading it failed"):
        Rules.from_toml(file)
    with pytest.raises(NotFoundError, match="does not exist"):
        Rules.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparcity": {}}, "have no field 'sparcity'. Did you mean 'sparsity'"),
        ({"sparsity": {"2": 1.0}}, r"`sparsity` must be in \[0, 1\), got 1 for '2'"),
        ({"sparsity": {"2": "half"}}, "`sparsity` must be a number, got 'half' for '2'"),
        ({"sparsity": "half"}, "must be a number, or a table"),
        ({"at_least": {"0": 9}}, "asks to keep 9 units of '0', which has 8"),
        ({"at_least": {"0": 0}}, "`at_least` must be at least 1, got 0"),
        ({"multiple_of": {"0": 2.5}}, "`multiple_of` must be a whole number, got 2.5"),
        ({"protect": 3}, "`protect` must be a list of group names"),
        ({"protect": ["nothing*"]}, "name 'nothing\\*', which is no group"),
    ],
)
def test_wrong_rules_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ladders(**fields)


def test_wrong_names_are_explained() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.inner, self.back = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.encoder(x)
            return self.head(x + self.back(self.inner(x)))

    graph = trace(Net(), torch.zeros(2, 3))
    with pytest.raises(PlanError, match=r"'encodr', which is no group. Did you mean 'encoder'"):
        Rules(protect=("encodr",)).choices(graph)
    with pytest.raises(
        PlanError, match=r"'back', which is no group. Its outputs go together with those of 'encoder'"
    ):
        Rules(protect=("back",)).choices(graph)
    with pytest.raises(
        PlanError, match=r"'head', which is no group. Its 2 outputs cannot be cut: output of the model"
    ):
        Rules(sparsity={"head": 0.5}).choices(graph)


def test_a_layer_of_a_single_unit_is_told_to_be_one() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(PlanError, match=r"'0', which is no group\. It has a single unit, which stays\."):
        Rules(protect=("0",)).choices(trace(model, torch.zeros(2, 4)))


def test_manual_cuts_what_is_named_and_nothing_else() -> None:
    scores = random_scores(GRAPH, 0, convex=True)
    rules = Rules(sparsity={"1": 0.5})
    found = search("manual", Problem(GRAPH, scores, ChainCost(), rules=rules))
    assert found.counts.tolist() == [8, 6, 16]
    assert list(found.plan.removed["1"]) == sorted(scores.order["1"][:6])


def test_manual_checks_limits() -> None:
    problem = Problem(
        GRAPH,
        random_scores(GRAPH, 0, convex=True),
        ChainCost(),
        {"macs": 100.0},
        rules=Rules(sparsity={"1": 0.5}),
    )
    with pytest.raises(
        BudgetError, match="must meet the budget: macs of at most 100 was asked, they reach 200"
    ):
        search("manual", problem)
