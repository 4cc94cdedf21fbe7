"""Outputs are stored, joined and compared by their rows, whichever axis these are on and however many an input has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sned.calibration import calibrate
from sned.calibration.answers import joined
from sned.graph.replay import Replay
from sned.graph.trace import state_of, trace


class Many(nn.Module):
    """Answers of all kinds beside its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.wide = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 16)
        self.head = nn.Linear(16, 5)
        self.table = nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, (state, _) = self.recurrent(x)
        scores = self.head(self.wide(y).relu())
        last = scores[:, -1]
        return self.table, state, scores.reshape(-1, 5), last @ last.T, last.square().mean(), last


X = torch.randn(100, 4, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Many().eval()


def test_rows_are_stored_and_joined_from_batches_as_one_pass_has_them(network: nn.Module) -> None:
    graph = trace(network, X[:2])
    found = calibrate(graph, state_of(network), [X])
    with torch.no_grad():
        _, state, flat, _, _, last = network(X)
        replay = Replay(graph, state_of(network))
        runs = [replay.run(part)[0] for part in X.split(64)]
    for got in (found.outputs(), joined(graph, runs)):
        assert len(got) == 3
        for tensor, wanted in zip(got, (state.transpose(0, 1), flat, last), strict=True):
            torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.outputs(70, 80)[1], flat[280:320], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("of_one_size", [True, False])
def test_batches_of_a_network_that_answers_once_for_all_rows_are_told_apart(of_one_size: bool) -> None:
    """Whether it takes one size alone, or any: there would be nothing to compare otherwise."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(4, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.wide(x.reshape(3, 4) if of_one_size else x).relu().mean(0))

    torch.manual_seed(0)
    model = Mean().eval()
    graph = trace(model, torch.randn(3, 4))
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    found = calibrate(graph, state_of(model), list(x.split(3)))
    with torch.no_grad():
        wanted = torch.cat([model(part) for part in x.split(3)])
    torch.testing.assert_close(found.outputs()[0], wanted)
    torch.testing.assert_close(found.outputs(6, 9)[0], wanted[10:15])
