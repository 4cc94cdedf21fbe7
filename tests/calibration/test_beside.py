"""What is learnt is of the model: inputs on which its recorded ops compute something else are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sned import apply, plan, trace
from sned.calibration import calibrate
from sned.errors import CalibrationError
from sned.graph.trace import state_of
from tests.graph.oracle import call, distance

X = torch.randn(16, 7, 6, generator=torch.Generator().manual_seed(0))


class Packed(nn.Module):
    """Reads sequences up to the end of each."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.rnn(packed)
        return self.head(h[-1])


class UpTo(nn.Module):
    """Leaves out what lies behind the end of the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x[:, : int(lengths.max())])).sum(1))


REFUSED = (
    r"must compute what the model computes on the inputs.*, but the.*Trace with an example in which they are"
)


@pytest.mark.parametrize("kind", [Packed, UpTo])
def test_lengths_other_than_those_of_the_recording_are_refused(kind: type[nn.Module]) -> None:
    model = kind().eval()
    graph = trace(model, (X[:4], torch.tensor([7, 5, 5, 2])))
    with pytest.raises(CalibrationError, match=REFUSED):
        calibrate(graph, state_of(model), [(X[4:8], torch.tensor([2, 3, 1, 2]))])


@pytest.mark.parametrize("last", [0, 1])
def test_the_first_inputs_are_looked_at_and_the_last(last: int) -> None:
    model, alike = Packed().eval(), torch.tensor([7, 7, 7, 7])
    graph = trace(model, (X[:4], alike))
    batches = [(X[:4], alike), (X[4:8], torch.tensor([2, 3, 1, 2]))]
    with pytest.raises(CalibrationError, match=REFUSED):
        calibrate(graph, state_of(model), [batches[1 - last], batches[last]])


def test_random_inputs_of_other_lengths_are_refused_too() -> None:
    model = Packed().eval()
    graph = trace(model, (X[:4], torch.tensor([7, 5, 5, 2])))
    with pytest.raises(CalibrationError, match=REFUSED):
        calibrate(graph, state_of(model), None)


def test_what_the_refusal_advises_works() -> None:
    model, lengths = Packed().eval(), torch.tensor([7, 7, 7, 7])
    graph = trace(model, (X[:4], lengths))
    found = calibrate(graph, state_of(model), [(X[:4], lengths), (X[4:8], lengths)])
    assert distance(found.outputs(4)[0], call(model, X[4:8], lengths)) < 1e-5
    varied = torch.tensor([7, 5, 5, 2])
    assert apply(model, plan(trace(model, (X[:4], varied)), sparsity=0.5)).rnn.hidden_size == 8


class Draws(nn.Module):
    """Draws at random in evaluation mode, counts its calls, and remembers the last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = torch.relu(self.a(x)) + self.calls
        self.last = h.detach()
        return self.b(nn.functional.dropout(h, 0.5, training=True))


def test_networks_that_draw_and_remember_are_learnt_from_and_left_as_they_were() -> None:
    model = Draws()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    torch.manual_seed(3)
    calibrate(trace(model, X[:2]), state_of(model), [X])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.last is None
    assert [module.training for module in model.modules()] == modes


def test_inputs_that_the_model_refuses_are_told_of() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    graph = trace(model, torch.randint(0, 20, (2, 5)))
    with pytest.raises(
        CalibrationError, match=r"Sequential.forward raised IndexError.*Prepare them as for the model"
    ):
        calibrate(graph, state_of(model), [torch.full((4, 5), 20)])


def test_weights_of_the_state_count_rather_than_the_model_s() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    other = {name: tensor + 1 for name, tensor in state_of(model).items()}
    found = calibrate(trace(model, X[:2]), other, [X])
    wanted = torch.func.functional_call(model, other, (X,))
    assert distance(found.outputs()[0], wanted.detach()) < 1e-5
