from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sned.calibration import Calibration, calibrate, divergence
from sned.graph import Graph, Plan
from sned.graph.replay import Replay, slice_state
from sned.graph.trace import state_of, trace
from sned.repair import Options, load_state, reconstruct
from sned.surgery import apply, without
from tests.repair.networks import block, images, same_twice


def ready(model: nn.Module, x: Tensor, removed: dict[str, list[int]]) -> tuple[Graph, Plan, Calibration]:
    graph = trace(model, x[:2])
    return graph, graph.plan(removed), calibrate(graph, state_of(model), [x])


def answers(graph: Graph, state: dict[str, Tensor], plan: Plan, x: Tensor) -> Tensor:
    with torch.no_grad():
        return Replay(graph, state, plan, cut=True).run(x)[0][0]


def test_a_linear_layer_gets_what_lstsq_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x = torch.randn(100, 4)
    graph, plan, calibration = ready(model, x, {"0": [1, 2]})
    state, solved = reconstruct(graph, state_of(model), plan, calibration, options=Options(ridge=0.0))
    with torch.no_grad():
        hidden, y = model[:2](x)[:, [0, 3, 4, 5]], model(x)
    columns = np.c_[hidden.numpy(), np.ones(100)]
    best = np.linalg.lstsq(columns, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(state["2.weight"].numpy(), best[:4].T, atol=1e-3)
    np.testing.assert_allclose(state["2.bias"].numpy(), best[4], atol=1e-3)
    torch.testing.assert_close(
        state["0.weight"], model[0].weight[[0, 3, 4, 5]].detach(), atol=1e-4, rtol=1e-4
    )
    left = ((y.numpy() - columns @ best) ** 2).sum() / ((y.numpy() - y.numpy().mean(0)) ** 2).sum()
    assert [s.name for s in solved] == ["0", "2"]
    assert solved[1].after == pytest.approx(left, rel=1e-3)
    assert solved[1].before > solved[1].after


class Added(nn.Module):
    """Adds a linear branch."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_a_layer_takes_over_what_a_linear_one_that_is_left_out_did() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Added(), nn.Linear(8, 5)).eval()
    x = torch.randn(100, 6)
    graph = trace(model, x[:2])
    short, whole = without(graph, ["1"]), Replay(graph, state_of(model))
    calibration = calibrate(short, state_of(short.model), [x], moments=False)
    assert not calibration.moments
    state, solved = reconstruct(
        short, state_of(short.model), short.plan({}), calibration, whole=whole, options=Options(ridge=1e-9)
    )
    assert [s.name for s in solved] == ["0", "2"]
    product = Replay(short, state, short.plan({}), cut=True).run(x)[0][0]
    torch.testing.assert_close(product, model(x), atol=1e-4, rtol=1e-4)
    columns = np.linalg.svd(np.c_[model[0](x).detach().numpy(), np.ones(100)])[2][:7]  # of rank 7 of 9
    branch, last = model[1].branch, model[2]
    both = torch.cat([last.weight @ (torch.eye(8) + branch.weight), (last(branch.bias))[:, None]], 1)
    got = torch.cat([state["2.weight"], state["2.bias"][:, None]], 1)
    np.testing.assert_allclose(columns @ got.detach().numpy().T, columns @ both.detach().numpy().T, atol=2e-3)
    torch.testing.assert_close(state["0.weight"], model[0].weight.detach(), atol=1e-4, rtol=1e-4)


class Wide(nn.Module):
    """Channels 4 to 7 of the first convolution repeat channels 0 to 3."""

    def __init__(self, second: nn.Module, *, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = second
        self.norm: nn.Module = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.last = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias):
                tensor[4:] = tensor[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.second(self.first(x).relu()))).mean((2, 3))


SECOND = {
    "convolution": nn.Conv2d(8, 6, 3),
    "without bias": nn.Conv2d(8, 6, 3, stride=2, bias=False),
    "transposed": nn.ConvTranspose2d(8, 6, 3, 2, 1, 1),
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("second", SECOND)
def test_units_that_others_repeat_are_made_up_for_entirely(second: str, norm: bool) -> None:
    torch.manual_seed(0)
    model = Wide(SECOND[second], norm=norm).eval()
    x = images()
    graph, plan, calibration = ready(model, x, {"first": [4, 1, 6, 3]})
    cut = slice_state({n: t.detach() for n, t in state_of(model).items()}, plan)
    state, _ = reconstruct(graph, state_of(model), plan, calibration, options=Options(ridge=1e-8))
    with torch.no_grad():
        dense = model(x)
    assert float((answers(graph, cut, plan, x) - dense).abs().max()) > 1e-2
    torch.testing.assert_close(answers(graph, state, plan, x), dense, atol=2e-3, rtol=2e-3)
    small = apply(model, plan)
    load_state(small, state)
    with torch.no_grad():
        torch.testing.assert_close(small(x), answers(graph, state, plan, x), atol=1e-5, rtol=1e-4)


def test_depthwise_convolutions_are_solved_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1),
    ).eval()
    x = images()
    graph, plan, calibration = ready(model, x, {"0": [0, 5]})
    state, solved = reconstruct(graph, state_of(model), plan, calibration)
    assert state["3.weight"].shape == (6, 1, 3, 3)
    assert [s.width for s in solved] == [27, 9, 6]
    assert all(s.after <= s.before + 1e-9 for s in solved)


@pytest.mark.parametrize("relu", [False, True])
def test_a_block_makes_up_for_what_the_shortcut_lost(relu: bool) -> None:
    model, x = block(relu=relu), images(96)
    graph, plan, calibration = ready(model, x, {"stem": [0, 2], "conv1": [1, 2, 3]})
    cut = slice_state({n: t.detach() for n, t in state_of(model).items()}, plan)
    state, solved = reconstruct(graph, state_of(model), plan, calibration)
    fresh = images(64, seed=9)
    with torch.no_grad():
        dense = model(fresh)
    plain = divergence([dense], [answers(graph, cut, plan, fresh)])
    mended = divergence([dense], [answers(graph, state, plan, fresh)])
    assert mended.error < 0.5 * plain.error
    assert {s.name for s in solved} == {"stem", "conv1", "conv2", "head"}


def test_looking_again_lowers_the_error_behind_the_activation_function() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.randn(400, 6)
    graph, plan, calibration = ready(model, x, {"0": list(range(8))})
    errors = []
    for rounds in (0, 1, 2, 6):
        state, _ = reconstruct(graph, state_of(model), plan, calibration, options=Options(1e-9, rounds))
        with torch.no_grad():
            hidden = functional.linear(x, state["0.weight"], state["0.bias"]).relu()
            got = functional.linear(hidden, state["2.weight"], state["2.bias"])
            want = model[:3](x)
            lacking = torch.where(want > 0, got - want, got.clamp(min=0))
        errors.append(float(lacking.square().mean()))
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_norms_written_out_with_channels_last_are_repaired_as_batchnorms_are() -> None:
    x, made = images(100), []
    for model in same_twice():
        graph = trace(model, x[:2])
        plan = graph.plan({group.name: [0, 2, 3] for group in graph.groups if group.name == "conv1"})
        assert plan.removed
        calibration = calibrate(graph, state_of(model), [x])
        state, _ = reconstruct(graph, state_of(model), plan, calibration)
        made.append((state, answers(graph, state, plan, x)))
    (native, y), (written, z) = made
    torch.testing.assert_close(z, y, atol=1e-3, rtol=1e-3)
    for name in ("conv1.weight", "conv2.weight", "conv2.bias"):
        torch.testing.assert_close(written[name], native[name], atol=1e-3, rtol=1e-3)


def test_an_empty_plan_changes_nothing() -> None:
    model, x = block(), images()
    graph, plan, calibration = ready(model, x, {})
    state, solved = reconstruct(graph, state_of(model), plan, calibration)
    with torch.no_grad():
        torch.testing.assert_close(answers(graph, state, plan, x), model(x), atol=1e-3, rtol=1e-3)
    assert all(s.before < 1e-6 for s in solved)


def test_spooled_activations_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(), images(100)
    graph, plan, calibration = ready(model, x, {"conv1": [1, 2, 3]})
    expected, _ = reconstruct(graph, state_of(model), plan, calibration)
    monkeypatch.setattr("sned.calibration.spool.IN_MEMORY", 0)
    monkeypatch.setattr("sned.repair.front.HELD", 0)
    monkeypatch.setattr("sned.repair.front.FEWEST", len(x))
    state, _ = reconstruct(graph, state_of(model), plan, calibration, workdir=tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value)
    assert not any(tmp_path.iterdir())


def test_inputs_join_where_activations_have_become_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = block(), images(200)
    graph, plan, calibration = ready(model, x, {"conv1": [1, 2, 3]})
    expected, everyone = reconstruct(graph, state_of(model), plan, calibration)
    # At the head no more is left than 8 numbers of each network; at a convolution it is thousands.
    monkeypatch.setattr("sned.repair.front.FEWEST", 20)
    monkeypatch.setattr("sned.repair.front.HELD", 200 * 4 * 100)
    state, solved = reconstruct(graph, state_of(model), plan, calibration)
    share = [few.patches / all_.patches for few, all_ in zip(solved, everyone, strict=True)]
    batches = -(-20 // calibration.batch) * calibration.batch
    assert share == [batches / 200] * (len(share) - 1) + [1.0]
    given = answers(graph, expected, plan, x)
    assert float((answers(graph, state, plan, x) - given).square().mean() / given.var()) < 0.05


def test_the_dense_state_is_not_touched() -> None:
    model, x = block(), images()
    before = {name: t.detach().clone() for name, t in state_of(model).items()}
    graph, plan, calibration = ready(model, x, {"conv1": [0]})
    reconstruct(graph, state_of(model), plan, calibration)
    assert all(torch.equal(before[name], t) for name, t in state_of(model).items())


def test_a_weight_of_two_calls_gets_what_lstsq_gives_for_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.same, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.same(self.same(self.inner(x)).relu()).relu())

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(200, 4)
    graph = trace(model, x[:2])
    group = graph.groups[0]
    plan = graph.plan({group.name: [0, 1]})
    calibration = calibrate(graph, state_of(model), [x])
    state, solved = reconstruct(graph, state_of(model), plan, calibration)
    assert "same" not in [s.name for s in solved]
    with torch.no_grad():
        once = model.inner(x)
        entered = torch.cat([once, model.same(once).relu()])
        left = model.same(entered)[:, 2:]
    columns = np.c_[entered[:, 2:].numpy(), np.ones(400)]
    best = np.linalg.lstsq(columns, left.numpy(), rcond=None)[0]
    np.testing.assert_allclose(state["same.weight"].numpy(), best[:4].T, atol=5e-3)
    np.testing.assert_allclose(state["same.bias"].numpy(), best[4], atol=5e-3)


def test_a_norm_that_is_called_behind_other_layers_too_takes_up_nothing() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(5)
            self.same, self.other = nn.Linear(6, 5, bias=False), nn.Linear(4, 5, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            h = self.inner(x).sigmoid()
            return self.norm(self.same(h)), self.norm(self.same(h.square())), self.norm(self.other(x))

    torch.manual_seed(0)
    model, x = Elsewhere().eval(), torch.randn(200, 4)
    graph, plan, calibration = ready(model, x, {"inner": [0, 1]})
    state, _ = reconstruct(graph, state_of(model), plan, calibration)
    torch.testing.assert_close(state["norm.running_mean"], model.norm.running_mean)
    with torch.no_grad():
        third = Replay(graph, state, plan, cut=True).run(x)[0][2]
        torch.testing.assert_close(third, model(x)[2], atol=1e-2, rtol=1e-2)


class Tied(nn.Module):
    """Two branches whose last layers add one bias: a parameter of both, or a buffer that is added behind them."""

    def __init__(self, *, outside: bool = False, deep: bool = False) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 6), nn.Linear(4, 6)
        self.b, self.d = nn.Linear(6, 3, bias=not outside), nn.Linear(6, 3, bias=not outside)
        self.norm, self.deep = nn.BatchNorm1d(3), deep
        if outside:
            self.register_buffer("shift", torch.zeros(3))
        else:
            self.d.bias = self.b.bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, z = self.b(self.a(x).tanh()), self.d(self.c(x).tanh())
        if self.b.bias is None:
            y, z = y + self.shift, z + self.shift
        return (self.norm(y).relu(), z.relu()) if self.deep else (y, z)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_bias_that_two_layers_share_stays_and_each_weight_gets_what_lstsq_gives_beside_it(
    axes: int,
) -> None:
    torch.manual_seed(0)
    model, x = Tied(deep=False).eval(), torch.randn(100, *([5] * (axes - 1)), 4)
    nn.init.normal_(model.b.bias, std=2.0)
    graph, plan, calibration = ready(model, x, {"a": [1, 2], "c": [0, 5]})
    state, _ = reconstruct(graph, state_of(model), plan, calibration, options=Options(ridge=0.0))
    torch.testing.assert_close(state["b.bias"], model.b.bias.detach())
    for inner, outer, kept in (("a", "b", [0, 3, 4, 5]), ("c", "d", [1, 2, 3, 4])):
        with torch.no_grad():
            hidden = model.get_submodule(inner)(x).tanh().flatten(0, -2)
            linear = hidden @ model.get_submodule(outer).weight.T
        best = np.linalg.lstsq(hidden[:, kept].numpy(), linear.numpy(), rcond=None)[0]
        np.testing.assert_allclose(state[f"{outer}.weight"].numpy(), best.T, atol=2e-3)


def test_a_shared_bias_is_as_good_as_a_buffer_that_is_added_behind_the_layers() -> None:
    torch.manual_seed(0)
    model, x = Tied(deep=True).eval(), torch.randn(100, 4)
    nn.init.normal_(model.b.bias)
    nn.init.normal_(model.norm.running_mean)
    other = Tied(outside=True, deep=True).eval()
    own = {n: t for n, t in model.state_dict().items() if n not in ("b.bias", "d.bias")}
    other.load_state_dict({**own, "shift": model.b.bias.detach().clone()})
    states = []
    for network in (model, other):
        graph, plan, calibration = ready(network, x, {"a": [1, 2], "c": [0, 5]})
        states.append(reconstruct(graph, state_of(network), plan, calibration)[0])
    for name in ("b.weight", "d.weight", "norm.running_mean"):
        torch.testing.assert_close(states[0][name], states[1][name], atol=1e-4, rtol=1e-4)


def test_masked_weights_get_what_lstsq_gives_on_the_entries_that_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x = torch.randn(100, 4)
    graph, plan, calibration = ready(model, x, {"0": [1, 2]})
    stay = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]]).bool()
    plan = replace(plan, masks={"2.weight": stay.numpy(), "2.bias": np.array([True, False, True])})
    state, _ = reconstruct(graph, state_of(model), plan, calibration, options=Options(ridge=0.0))
    with torch.no_grad():
        hidden, y = model[:2](x)[:, [0, 3, 4, 5]].numpy(), model(x).numpy()
    for row, kept in enumerate(stay.numpy()):
        best = np.linalg.lstsq(np.c_[hidden[:, kept], np.ones(100)], y[:, row], rcond=None)[0]
        np.testing.assert_allclose(state["2.weight"][row][stay[row]].numpy(), best[:-1], atol=1e-3)
        assert float(state["2.bias"][row]) == pytest.approx(best[-1] if row != 1 else 0.0, abs=1e-3)
    assert not bool(state["2.weight"][~stay].any())
