"""What is recorded, and what a model that cannot be recorded is told."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import trace
from sned.errors import ModelError, PlanError
from sned.graph import Replay
from tests.graph.networks import Cross, Residual
from tests.graph.oracle import call, distance, halved, lively, state, zeroed

IMAGE = torch.randn(2, 3, 8, 8)


def test_ops_name_the_module_that_called_them() -> None:
    graph = trace(Residual(), IMAGE)
    assert [op.module for op in graph.ops if op.name == "convolution"] == [
        "stem",
        "a1",
        "a2",
        "down",
        "b1",
        "b2",
    ]
    assert {op.module for op in graph.ops if "add" in op.name and op.name != "addmm"} == {""}
    assert [op.index for op in graph.ops] == list(range(len(graph.ops)))


def test_tensors_are_numbered_with_their_shapes() -> None:
    graph = trace(Residual(), IMAGE)
    assert graph.batch == 2
    assert [graph.tensors[n].shape for n in graph.inputs] == [(2, 3, 8, 8)]
    assert [graph.tensors[n].shape for n in graph.outputs] == [(2, 5)]
    model = Residual()
    for name, number in graph.parameters.items():
        assert graph.tensors[number].shape == tuple(state(model)[name].shape)
    assert "bn.weight" in graph.trainable
    assert "bn.running_mean" in graph.parameters.keys() - graph.trainable
    assert set(graph.unread) <= {"bn.num_batches_tracked"}


def test_the_model_is_not_touched() -> None:
    model = lively(Residual()).train()
    model.bn.eval()
    before = {name: (tensor, tensor.clone()) for name, tensor in state(model).items()}
    attributes = {path: {k: id(v) for k, v in vars(m).items()} for path, m in model.named_modules()}
    modes = {path: m.training for path, m in model.named_modules()}
    trace(model, IMAGE)
    assert all(
        state(model)[name] is tensor and torch.equal(tensor, was) for name, (tensor, was) in before.items()
    )
    assert {path: m.training for path, m in model.named_modules()} == modes
    assert {path: {k: id(v) for k, v in vars(m).items()} for path, m in model.named_modules()} == attributes
    assert not model.stem._forward_hooks


def test_global_state_is_put_back() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    before = nn.Module.__call__, F.has_torch_function_unary
    model, wrong = Residual(), torch.randn(2, 4, 8, 8)
    random = torch.get_rng_state()
    trace(model, IMAGE)
    with pytest.raises(ModelError):
        trace(model, wrong)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()
    assert (nn.Module.__call__, F.has_torch_function_unary) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_on_meta_tensors_is_traced_without_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 100_000), nn.ReLU(), nn.Linear(100_000, 4096))
    graph = trace(model, torch.empty(2, 4096, device="meta"))
    assert [group.size for group in graph.groups] == [100_000]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [(torch.randn(2, 4, 8, 8), r"Residual\.forward failed on shapes \(2, 4, 8, 8\).*Check the shape"),
     (torch.randn(2, 3), r"failed on shapes \(2, 3\)"),
     (torch.zeros(2, 3, 8, 8, dtype=torch.long), r"failed on shapes \(2, 3, 8, 8\).*dtype"),
     ((IMAGE, IMAGE), r"failed on shapes \(2, 3, 8, 8\), \(2, 3, 8, 8\)"),
     ({"image": IMAGE}, r"failed on shapes .*image"),
     ((), r"`example_inputs` must hold at least one tensor, got tuple"),
     ("image", r"must hold at least one tensor, got str"),
     (None, r"must hold at least one tensor, got NoneType")],
)  # fmt: skip
def test_inputs_that_the_model_does_not_take(inputs: object, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        trace(Residual(), inputs)


class Casting(nn.Module):
    """Casts by hand where it asks for a precision."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b(torch.relu(self.a(x.to(torch.bfloat16)))).float()


@pytest.mark.parametrize(
    ("model", "dtype", "text"),
    [(nn.Sequential(nn.Linear(6, 8)), torch.float64, r"module '0' gets float64 and float32\. Check the dtype"),
     (nn.Sequential(nn.Linear(6, 8)), torch.int64, r"gets int64 and float32"),
     (nn.Sequential(nn.Conv1d(2, 8, 1, bias=False)), torch.float16, r"aten\.convolution\.default .*gets float16 and float32"),
     (Casting(), torch.float32, r"module 'a' gets bfloat16 and float32.*`autocast` off.* leave all casts to it")],
)  # fmt: skip
def test_dtypes_that_clash_in_a_product_are_refused(model: nn.Module, dtype: torch.dtype, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        trace(model, torch.ones(2, 2, 6, dtype=dtype))


def test_an_error_in_the_forward_is_passed_on_in_words() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("the reason")

    with pytest.raises(ModelError, match=r"Broken\.forward failed .* KeyError: 'the reason'"):
        trace(Broken(), IMAGE)


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 6, 5), torch.randn(2, 9, 7)),
        {"x": torch.randn(2, 6, 5), "memory": torch.randn(2, 9, 7)},
    ],
)
def test_tuples_are_positions_and_dicts_are_names(inputs: object) -> None:
    graph = trace(Cross(), inputs)
    assert [graph.tensors[n].shape for n in graph.inputs] == [(2, 6, 5), (2, 9, 7)]


def test_nested_inputs_and_plain_values() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, parts: list[Tensor], *, flag: bool, scale: float) -> Tensor:
            assert flag
            return self.b(F.relu(self.a(parts[0] + parts[1]))) * scale

    model = lively(Nested())
    inputs = {"parts": [torch.randn(2, 4), torch.randn(2, 4)], "flag": True, "scale": 2.0}
    graph = trace(model, inputs)
    assert len(graph.inputs) == 2
    outputs, _ = Replay(graph, state(model)).run(inputs)
    assert distance(outputs, call(model, inputs)) < 1e-6


class Reads(nn.Module):
    """A forward that reads a value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("times", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for _ in range(int(self.times)):
            x = x * 2
        return self.b(x)


def test_a_forward_that_reads_the_value_of_a_buffer() -> None:
    model = lively(Reads())
    graph = trace(model, torch.randn(2, 4))
    x = torch.randn(3, 4)
    outputs, _ = Replay(graph, state(model)).run(x)
    assert distance(outputs, call(model, x)) < 1e-6


def test_a_graph_without_its_model_crosses_a_process() -> None:
    from dataclasses import replace

    graph = trace(Residual(), IMAGE)
    again = pickle.loads(pickle.dumps(replace(graph, model=None)))
    assert again.fingerprint == graph.fingerprint
    assert [g.name for g in again.groups] == [g.name for g in graph.groups]
    assert again.plan({"a1": [0]}).kept.keys() == graph.plan({"a1": [0]}).kept.keys()


def test_names_of_groups_are_looked_up_with_help() -> None:
    graph = trace(Residual(), IMAGE)
    assert graph.group("b1").size == 12
    with pytest.raises(PlanError, match=r"No group is called 'stm'\. Did you mean 'stem'"):
        graph.group("stm")


def test_a_thousand_ops_are_traced_in_linear_time() -> None:
    """Not a benchmark: it only fails where something is quadratic."""
    from time import perf_counter

    def seconds(depth: int) -> float:
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)])
        start = perf_counter()
        graph = trace(model, torch.randn(2, 4))
        assert len(graph.groups) == depth - 1
        return perf_counter() - start

    seconds(10)
    assert seconds(400) < 30 * seconds(40) + 0.5


class Merging(nn.Linear):
    """Adds its low-rank part to its weight for evaluation, and takes it out again for training."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        made = super().forward(x)
        return made if self.merged else made + x @ self.down.T @ self.up.T


def test_what_train_and_eval_do_is_undone_by_them() -> None:
    model, x = nn.Sequential(Merging(6, 8), Merging(8, 3)).train(), torch.randn(2, 6)
    weight = model[0].weight.detach().clone()
    trace(model, x)
    assert all(module.training for module in model.modules())
    assert not model[0].merged
    assert torch.allclose(model[0].weight, weight, atol=1e-5)
    model(x).sum().backward()
    assert model[0].up.grad is not None
    assert model[0].up.grad.any()


class Named(nn.Module):
    """Has branches that it calls its paths, and hands a constant out beside its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList([nn.Linear(6, 16), nn.Linear(6, 16)])
        self.b, self.anchors = nn.Linear(16, 3), torch.arange(5.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.b(torch.relu(self.paths[0](x) + self.paths[1](x))), self.anchors


def test_attributes_may_be_called_paths_and_constants_may_be_returned() -> None:
    model, x = lively(Named()), torch.randn(2, 6)
    small, graph, plan = halved(model, x)
    assert [group.name for group in graph.groups] == ["paths.0"]
    assert distance(call(small, x), zeroed(model, graph, plan.removed, x)) < 1e-5
    assert torch.equal(call(small, x)[1], torch.arange(5.0))


class Answers:
    """What a model may return: an object of a class that nothing else knows."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Slotted:
    """The same without a table of attributes."""

    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Returning(nn.Module):
    """A classifier that returns its answers in some way."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.way(self.b(self.a(x).relu()))


WAYS: dict[str, Any] = {
    "an object": Answers,
    "an object with slots": Slotted,
    "a namespace": lambda y: SimpleNamespace(beside=3, logits=y),
    "objects in a tuple": lambda y: (Answers(y),),
    "the class": lambda y: y.argmax(1),
    "the class and how sure": lambda y: y.softmax(1).max(1),
    "the class alone": lambda y: torch.max(y, 1)[1],
    "the least likely": lambda y: y.argmin(-1),
    "the median's place": lambda y: y.median(1).indices,
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_protect_themselves_however_they_are_returned(way: str) -> None:
    graph = trace(Returning(WAYS[way]), torch.randn(2, 6))
    assert [group.name for group in graph.groups] == ["a"]
    assert any(frozen.name == "b" for frozen in graph.frozen)


def test_the_largest_value_alone_tells_no_place() -> None:
    graph = trace(Returning(lambda y: y.max(1).values), torch.randn(2, 6))
    assert {group.name: group.exact for group in graph.groups} == {"a": True, "b": False}


@pytest.mark.parametrize("way", [lambda y: y.tolist(), lambda y: y.numpy(), lambda y: None])
def test_a_model_that_returns_no_tensors(way: Any) -> None:
    with pytest.raises(
        ModelError, match=r"must return tensors, alone or in .* none was found in what Returning.forward"
    ):
        trace(Returning(way), torch.randn(2, 6))


@pytest.mark.parametrize("given", ["model.pt", None, Residual, {"a.weight": torch.ones(1)}, print])
def test_what_is_no_model(given: Any) -> None:
    with pytest.raises(ModelError, match=r"`model` must be an `nn.Module` or a Keras 3 model, got"):
        trace(given, IMAGE)


def test_an_example_in_an_object_of_its_own() -> None:
    with pytest.raises(
        ModelError, match="in tuples, lists and dicts, but some are in an object of a class of its own"
    ):
        trace(Returning(WAYS["the class"]), (torch.randn(2, 6), Answers(torch.randn(2, 6))))
