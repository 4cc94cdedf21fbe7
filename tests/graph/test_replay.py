"""The recorded ops, run again, against the module and against zeroing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sned import trace
from sned.graph import Replay
from sned.graph.ir import Op
from tests.graph.networks import NETWORKS, Residual
from tests.graph.oracle import call, distance, example_of, lively, longer, random_units, state, zeroed
from tests.graph.test_must_work import as_if_gone

IMAGE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_module_at_any_batch_size_and_its_zeroed_self_under_a_plan(name: str) -> None:
    model, inputs = NETWORKS[name]()
    lively(model)
    graph = trace(model, example_of(inputs))
    assert graph.batched
    removed = random_units(graph, None, 1)
    dense, cut = Replay(graph, state(model)), Replay(graph, state(model), graph.plan(removed))
    for given in (inputs, longer(longer(longer(inputs)))):
        with torch.no_grad():
            outputs, _ = dense.run(example_of(given))
        assert distance(outputs, call(model, *given)) < 1e-5
        with torch.no_grad():
            outputs, _ = cut.run(example_of(given))
        with as_if_gone(name, graph):
            assert distance(outputs, zeroed(model, graph, removed, *given)) < 1e-4


def test_a_batch_of_one() -> None:
    model = lively(Residual())
    outputs, _ = Replay(trace(model, IMAGE), state(model)).run(IMAGE[:1])
    assert distance(outputs, call(model, IMAGE[:1])) < 1e-6


def test_an_example_of_one_sample_is_enough() -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE[:1])
    outputs, _ = Replay(graph, state(model)).run(IMAGE)
    assert distance(outputs, call(model, IMAGE)) < 1e-6
    assert graph.fingerprint == trace(model, IMAGE).fingerprint


def test_watched_tensors_are_those_of_the_forward() -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE)
    convs = [op for op in graph.ops if op.name == "convolution"]
    seen: list[torch.Tensor] = []
    handles = [
        m.register_forward_hook(lambda _, __, y: seen.append(y))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    call(model, IMAGE)
    for handle in handles:
        handle.remove()
    numbers = [op.outputs[0] for op in convs]
    assert None not in numbers
    _, watched = Replay(graph, state(model)).run(IMAGE, watch=[n for n in numbers if n is not None])
    assert len(watched) == len(seen) == 6
    for op, expected in zip(convs, seen, strict=True):
        assert distance(watched[op.outputs[0] or 0], expected) < 1e-6


def test_parameters_and_inputs_can_be_watched() -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE)
    wanted = [graph.inputs[0], graph.parameters["fc.weight"]]
    _, watched = Replay(graph, state(model)).run(IMAGE, watch=wanted)
    assert torch.equal(watched[wanted[0]], IMAGE)
    assert torch.equal(watched[wanted[1]], model.fc.weight)


def test_it_can_be_stopped_and_looked_into() -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE)
    ran: list[int] = []

    def note(op: Op, live: dict[int, torch.Tensor]) -> None:
        assert all(number in live for number in op.inputs)
        ran.append(op.index)

    outputs, _ = Replay(graph, state(model)).run(IMAGE, before=note, stop=5)
    assert list(outputs) == []
    assert ran == [0, 1, 2, 3, 4]


def test_values_can_be_replaced_on_the_way() -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE)
    last = max(op.index for op in graph.ops if op.name in ("addmm", "linear"))

    def clear(op: Op, live: dict[int, torch.Tensor]) -> None:
        if op.index == last:
            live[op.inputs[1]] = torch.zeros_like(live[op.inputs[1]])

    outputs, _ = Replay(graph, state(model)).run(IMAGE, before=clear)
    assert distance(outputs, model.fc.bias.detach().expand(2, 5)) < 1e-6


def test_weights_are_not_changed_by_a_run() -> None:
    model = lively(NETWORKS["lstm"]()[0])
    graph = trace(model, torch.arange(10).reshape(2, 5))
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    replay = Replay(graph, state(model))
    first, _ = replay.run(torch.arange(10).reshape(2, 5))
    second, _ = replay.run(torch.arange(10).reshape(2, 5))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


class Remembers(nn.Module):
    """Writes into a buffer by a view, into statistics by a batch norm that trains, and into a weight by its largest
    norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 6, max_norm=0.5), nn.BatchNorm1d(6)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros(16, 2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        statistics = self.norm.running_mean, self.norm.running_var
        y = nn.functional.batch_norm(self.embed(ids).mean(1), *statistics, training=True)
        h = torch.relu(self.a(y + self.norm.running_mean))
        self.seen[:, 0].lerp_(h.mean(0), 0.1)
        return self.b(h - self.seen.sum(1))


def test_what_the_pass_writes_into_stays_as_it_was() -> None:
    model, ids = lively(Remembers()), torch.randint(0, 9, (4, 5))
    graph, before = trace(model, ids), copy.deepcopy(model.state_dict())
    assert set(graph.written) == {"embed.weight", "norm.running_mean", "norm.running_var", "seen"}
    expected, replay = call(copy.deepcopy(model), ids), Replay(graph, state(model))
    for _ in range(2):
        assert distance(replay.run(ids)[0], expected) < 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_what_is_only_read_is_not_copied() -> None:
    graph = trace(model := lively(Residual()), IMAGE)
    assert not graph.written
    _, watched = Replay(graph, state(model)).run(IMAGE, watch=[graph.parameters["bn.running_mean"]])
    assert watched[graph.parameters["bn.running_mean"]] is model.bn.running_mean


def test_gradients_flow_where_they_are_asked_for() -> None:
    model = lively(Residual())
    graph = trace(model, IMAGE)
    (out,), _ = Replay(graph, state(model)).run(IMAGE)
    mine = torch.autograd.grad(out.sum(), [model.stem.weight])[0]
    expected = torch.autograd.grad(model(IMAGE).sum(), [model.stem.weight])[0]
    assert distance(mine, expected) < 1e-5


def test_gradients_flow_through_a_bag_of_embeddings() -> None:
    model, inputs = NETWORKS["embedding_bag"]()
    lively(model)
    (out,), _ = Replay(trace(model, *inputs), state(model)).run(*inputs)
    mine = torch.autograd.grad(out.sum(), [model[0].weight])[0]
    assert distance(mine, torch.autograd.grad(model(*inputs).sum(), [model[0].weight])[0]) < 1e-5


class Turned(nn.Module):
    """A batch norm over a transposed tensor; what follows is a view or a copy, as the strides have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.a(x).transpose(1, 2)).transpose(1, 2)
        return self.b(y.reshape(x.shape[0], x.shape[1] // 2, -1))


def test_strides_that_differ_from_those_of_the_recording() -> None:
    model, x = lively(Turned()), torch.randn(2, 6, 5)
    outputs, _ = Replay(trace(model, x), state(model)).run(x)
    assert distance(outputs, call(model, x)) < 1e-5
