"""Surgery hands over a working network of the user's own class, or nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sned import Graph, Plan, apply, trace
from sned.errors import ModelError, PlanError, SurgeryError
from tests.graph.networks import Residual, SharedTwice, Tied, tokens
from tests.graph.oracle import call, distance, halved, lively, size, state, zeroed

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned_residual() -> tuple[nn.Module, nn.Module, Graph, Plan]:
    """A residual network, and what remains of it."""
    model = lively(Residual())
    return model, *halved(model, IMAGE)


def test_the_original_is_not_touched() -> None:
    model = lively(Residual())
    tensors = {name: (tensor, tensor.clone()) for name, tensor in state(model).items()}
    attributes = {path: dict(vars(module)) for path, module in model.named_modules()}
    halved(model, IMAGE)
    for name, tensor in state(model).items():
        assert tensor is tensors[name][0]
        assert torch.equal(tensor, tensors[name][1])
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == attributes


def test_nothing_removed_changes_nothing() -> None:
    model = lively(Residual())
    small = apply(model, trace(model, IMAGE).plan({}))
    assert size(small) == size(model)
    assert torch.equal(call(small, IMAGE), call(model, IMAGE))


def test_modes_are_kept() -> None:
    model = lively(Residual())
    model.bn.train()
    small, *_ = halved(model, IMAGE)
    assert {p: m.training for p, m in small.named_modules()} == {
        p: m.training for p, m in model.named_modules()
    }
    model.train()
    small, *_ = halved(model, IMAGE)
    assert small.training
    assert small.bn.training


def test_layers_say_their_new_sizes() -> None:
    _, small, _, _ = pruned_residual()
    assert repr(small.fc) == "Linear(in_features=6, out_features=5, bias=True)"
    assert repr(small.a1).startswith("Conv2d(4, 3, ")
    assert small.bn.num_features == 4


def test_train_forward_and_backward_reach_every_weight() -> None:
    _, small, _, _ = pruned_residual()
    small.train()
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimiser = torch.optim.SGD(small.parameters(), lr=0.1)
    F.cross_entropy(small(IMAGE), torch.tensor([1, 2])).backward()
    optimiser.step()
    for _name, parameter in small.named_parameters():
        assert parameter.grad is not None
        assert parameter.is_leaf
        assert parameter.grad.shape == parameter.shape
    assert not torch.equal(before["fc.weight"], small.fc.weight)
    assert small.bn.num_batches_tracked == 1


def test_state_dict_has_the_same_names_and_goes_into_a_second_copy() -> None:
    model, small, _, plan = pruned_residual()
    assert list(small.state_dict()) == list(model.state_dict())
    other = apply(lively(Residual(), seed=5), plan)
    assert distance(call(other, IMAGE), call(small, IMAGE)) > 0.01
    other.load_state_dict(small.state_dict())
    assert torch.equal(call(other, IMAGE), call(small, IMAGE))


def test_deepcopy_is_independent() -> None:
    _, small, _, _ = pruned_residual()
    twin = copy.deepcopy(small)
    assert torch.equal(call(twin, IMAGE), call(small, IMAGE))
    with torch.no_grad():
        twin.fc.weight.zero_()
    assert small.fc.weight.abs().sum() > 0


def test_export_of_the_result_computes_the_same() -> None:
    _, small, _, _ = pruned_residual()
    program = torch.export.export(small, (IMAGE,))
    assert distance(program.module()(IMAGE), call(small, IMAGE)) < 1e-6


def test_frozen_parameters_stay_frozen() -> None:
    model = lively(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    small, _, plan = halved(model, torch.randn(2, 4))
    assert {"0.weight", "2.bias"} <= plan.kept.keys()
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


def test_gradients_of_the_original_are_not_carried_along() -> None:
    model = lively(Residual())
    model(IMAGE).sum().backward()
    small, *_ = halved(model, IMAGE)
    for parameter in small.parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    small(IMAGE).sum().backward()


def test_tied_weights_stay_tied() -> None:
    model = lively(Tied())
    small, graph, plan = halved(model, tokens())
    assert small.head.weight is small.embed.weight
    assert small.embed.weight.shape == (20, 4)
    assert distance(call(small, tokens()), zeroed(model, graph, plan.removed, tokens())) < 1e-4
    small(tokens()).sum().backward()
    assert len(list(small.parameters())) == len(list(model.parameters()))


def test_a_module_that_is_called_twice_is_cut_once() -> None:
    model = lively(SharedTwice())
    small, _, plan = halved(model, IMAGE)
    assert small.shared.weight.shape == (4, 4, 3, 3)
    np.testing.assert_array_equal(plan.kept["shared.weight"][0], plan.kept["shared.weight"][1])


class TwoNames(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.middle = nn.Linear(8, 8)
        self.again = self.middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.again(F.relu(self.middle(F.relu(self.first(x)))))))


def test_a_module_of_two_names_stays_one() -> None:
    small, _, _ = halved(lively(TwoNames()), torch.randn(2, 4))
    assert small.again is small.middle
    assert small.again.weight is small.middle.weight
    assert small.middle.weight.shape == (4, 4)


def test_hooks_of_the_user_still_run() -> None:
    model = lively(Residual())
    seen: list[torch.Size] = []
    model.stem.register_forward_hook(lambda _, __, result: seen.append(result.shape))
    small, *_ = halved(model, IMAGE)
    seen.clear()
    call(small, IMAGE)
    assert seen == [torch.Size([2, 4, 8, 8])]


def test_double_and_half_precision() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = lively(Residual()).to(dtype)
        small, graph, plan = halved(model, IMAGE.to(dtype))
        assert {p.dtype for p in small.parameters()} == {dtype}
        expected = zeroed(model, graph, plan.removed, IMAGE.to(dtype))
        assert distance(call(small, IMAGE.to(dtype)), expected) < (1e-9 if dtype is torch.float64 else 0.05)


def test_a_plan_applies_to_other_weights_of_the_same_structure() -> None:
    _, small, graph, plan = pruned_residual()
    other = lively(Residual(), seed=7)
    cut = apply(other, Plan.from_json(plan.to_json()))
    assert [p.shape for p in cut.parameters()] == [p.shape for p in small.parameters()]
    assert distance(call(cut, IMAGE), zeroed(other, graph, plan.removed, IMAGE)) < 1e-4


class Wider(Residual):
    """The same names, another width."""

    def __init__(self) -> None:
        super().__init__()
        self.a1, self.a2 = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)


class Further(Residual):
    """One more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(super().forward(x))


class Other(Residual):
    """The same parameters, another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Wider, r"'a1\.weight' must have shape \(6, 8, 3, 3\), got shape \(10, 8"),
     (Further, r"'extra\.(bias|weight)' is new"),
     (Other, r"the forward pass is another one"),
     (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), r"'stem\.weight' must have shape .*, got no such parameter")],
)  # fmt: skip
def test_a_network_that_the_plan_was_not_made_for_is_refused(kind: type[nn.Module], text: str) -> None:
    _, _, _, plan = pruned_residual()
    with pytest.raises(PlanError, match=text):
        apply(kind(), plan)


def test_a_pruned_network_refuses_the_plan_that_made_it() -> None:
    _, small, _, plan = pruned_residual()
    with pytest.raises(PlanError, match="must have shape"):
        apply(small, plan)


def test_a_plan_whose_kept_indices_do_not_follow_from_what_it_removes_is_refused() -> None:
    model, _, _, plan = pruned_residual()
    kept = {**plan.kept, "fc.weight": {1: np.arange(12)}}
    with pytest.raises((PlanError, SurgeryError)):
        apply(model, replace(plan, kept=kept))


class Uncopyable(Residual):
    """Holds what cannot be copied."""

    def __deepcopy__(self, _: object) -> Uncopyable:
        raise RuntimeError("no copies")


def test_a_model_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(ModelError, match=r"copying Uncopyable failed: no copies.*copy\.deepcopy"):
        halved(Uncopyable(), IMAGE)


class Switched(nn.Module):
    """Takes one of two roads, as an attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.residual = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = self.b(y)
        return self.c(z + y if self.residual else z)


def test_a_model_that_changed_since_its_trace_is_traced_again() -> None:
    model, x = lively(Switched()), torch.randn(2, 5)
    _, graph, plan = halved(model, x)
    assert graph.model is model
    model.residual = True
    with pytest.raises(PlanError, match="the forward pass is another one"):
        apply(model, plan)
    model.residual = False
    model.c = nn.Linear(8, 4)
    with pytest.raises(PlanError, match=r"parameter 'c\.weight' must have shape \(3, 8\)"):
        apply(model, plan)


def test_new_weights_after_the_trace_are_the_ones_cut() -> None:
    model, x = lively(Switched()), torch.randn(2, 5)
    graph = trace(model, x)
    plan = graph.plan({graph.groups[0].name: [0, 3]})
    with torch.no_grad():
        model.a.weight.fill_(2.0)
    assert torch.equal(apply(model, plan).a.weight, torch.full((6, 5), 2.0))


class Mixed(nn.Module):
    """Chooses its own precision."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).float()


def test_a_precision_that_the_forward_chooses_stays_its_own() -> None:
    model, x = lively(Mixed()), torch.randn(2, 6)
    small, graph, plan = halved(model, x)
    assert distance(call(small, x), zeroed(model, graph, plan.removed, x)) < 0.05
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = small.body(x).float()
        assert wanted.dtype is not small.body(x).dtype
    assert torch.equal(call(small, x), wanted)


def test_inference_mode_of_the_caller_does_not_matter() -> None:
    model = lively(Residual())
    with torch.inference_mode():
        small, *_ = halved(model, IMAGE)
    outside, *_ = halved(model, IMAGE)
    assert size(small) == size(outside) < size(model)
    assert all(not parameter.is_inference() for parameter in small.parameters())
    small.train()(IMAGE).sum().backward()


def test_an_example_that_the_original_does_not_take_is_the_example_s_fault() -> None:
    model = nn.Sequential(nn.Embedding(4, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = trace(model, torch.full((2, 6), 9))
    with pytest.raises(
        ModelError, match=r"Sequential.forward raised .*Check the shape, the order and the dtype"
    ):
        apply(model, graph.plan({"1": [1]}))


def test_weights_without_values_are_not_cut() -> None:
    with torch.device("meta"):
        model = Residual()
    graph = trace(model, IMAGE)
    with pytest.raises(
        ModelError, match=r"'stem.weight' is on the meta device, where only shapes are known. Make"
    ):
        apply(model, graph.plan({"a1": [0]}))


def test_channels_stay_last() -> None:
    model = lively(Residual()).to(memory_format=torch.channels_last)
    small, *_ = halved(model, IMAGE)
    assert small.a1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.a1.weight.is_contiguous()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
def test_weights_that_are_normalised_before_each_pass(norm: Any) -> None:
    model = nn.Sequential(norm(nn.Conv1d(3, 16, 3)), nn.ReLU(), nn.Conv1d(16, 4, 1)).eval()
    x = torch.randn(2, 3, 12)
    small, _, plan = halved(model, x)
    (gone,) = plan.removed.values()
    whole = nn.Sequential(model[0], model[1], copy.deepcopy(model[2]))
    with torch.no_grad():
        whole[2].weight[:, list(gone)] = 0  # nobody hears the channels that go
    assert distance(call(small, x), call(whole, x)) < 1e-5


def test_weights_that_are_divided_by_their_largest_singular_value() -> None:
    model = nn.Sequential(
        torch.nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 16, 3)), nn.ReLU(), nn.Conv1d(16, 4, 1)
    ).eval()
    x = torch.randn(2, 3, 12)
    small, graph, plan = halved(model, x)
    assert small[2].weight.shape == (4, 8, 1)
    assert distance(call(small, x), zeroed(model, graph, plan.removed, x)) < 1e-5


@pytest.mark.parametrize("when", ["before the trace", "after the trace"])
@pytest.mark.parametrize("part", ["the model", "a layer"])
def test_a_model_that_compiles_itself_is_cut_like_any_other(when: str, part: str) -> None:
    plain, x = lively(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))), torch.randn(2, 6)
    model = copy.deepcopy(plain)

    def compiled() -> None:
        (model if part == "the model" else model[2]).compile(backend="eager")
        call(model, x)

    if when == "before the trace":
        compiled()
    graph = trace(model, x)
    if when == "after the trace":
        compiled()
    plan = graph.plan({"0": [0, 1, 5]})
    small = apply(model, plan)
    assert distance(call(small, x), zeroed(plain, graph, plan.removed, x)) < 1e-5
    small(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert distance(call(model, x), call(plain, x)) < 1e-6


def test_what_is_no_plan() -> None:
    with pytest.raises(
        PlanError, match=r"`plan` must be a `Plan`, as `sned.plan` or `Plan.from_json` makes it, got str"
    ):
        apply(Residual(), "{}")  # type: ignore[arg-type]
