"""Each criterion against its formula, written out slowly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.calibration import calibrate
from sned.errors import UserError
from sned.graph.replay import Replay
from sned.graph.trace import state_of, trace
from sned.saliency import Evidence, score
from sned.saliency.synflow import synaptic_flow
from tests.saliency import cases


def make(model: nn.Module, x: Tensor, *, inputs: Tensor | None = None) -> Evidence:
    """Evidence of a model, calibrated where inputs are given."""
    graph = trace(model.eval(), x)
    state = state_of(model)
    return Evidence(
        graph, state, None if inputs is None else calibrate(graph, state, [inputs], limit=len(inputs))
    )


@pytest.fixture
def mlp() -> Evidence:
    """Two linear layers with a ReLU between them."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return make(model, torch.zeros(2, 4), inputs=torch.randn(200, 4))


def weight(evidence: Evidence, name: str) -> np.ndarray:  # type: ignore[type-arg]
    return evidence.state[name].detach().double().numpy()


def importance(evidence: Evidence, name: str, group: str = "0") -> np.ndarray:  # type: ignore[type-arg]
    """What each unit adds to the error."""
    scores = score(name, evidence)
    result = np.zeros(len(scores.order[group]))
    result[scores.order[group]] = scores.marginal(group)
    return result


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_magnitude_counts_filters_and_the_columns_that_read_them(
    mlp: Evidence, name: str, power: int
) -> None:
    rows = (abs(weight(mlp, "0.weight")) ** power).sum(1)
    columns = (abs(weight(mlp, "2.weight")) ** power).sum(0)
    expected = (rows / rows.mean() + columns / columns.mean()) / 2
    np.testing.assert_allclose(importance(mlp, name), expected, rtol=1e-6)  # sums of float32


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "geometric-median", "wanda"])
def test_scaling_a_layer_changes_nothing(mlp: Evidence, name: str) -> None:
    scaled = {key: t * 7 if key == "0.weight" else t for key, t in mlp.state.items()}
    np.testing.assert_allclose(importance(replace(mlp, state=scaled), name), importance(mlp, name))


def test_geometric_median_sums_the_distances(mlp: Evidence) -> None:
    w = weight(mlp, "0.weight")
    distance = np.array([sum(np.linalg.norm(a - b) for b in w) for a in w])
    np.testing.assert_allclose(importance(mlp, "geometric-median"), distance / distance.mean())


def test_lamp_divides_by_what_is_at_least_as_large(mlp: Evidence) -> None:
    squared = importance(mlp, "l2")
    expected = [s / squared[squared >= s].sum() for s in squared]
    np.testing.assert_allclose(importance(mlp, "lamp"), expected)


def test_batchnorm_reads_the_scales_and_says_where_there_are_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0, -0.5, 1.0, 0.5]))
    scores = score("batchnorm", make(model, torch.zeros(2, 3, 4, 4)))
    assert scores.order["0"].tolist() == [1, 3, 2, 0]
    np.testing.assert_allclose(scores.error["0"], [0, 0.5, 1, 2, 4])
    assert scores.notes == ("no batch normalisation on 2: L2 magnitude was used there",)


def test_random_follows_its_seed(mlp: Evidence) -> None:
    assert not np.array_equal(importance(mlp, "random"), importance(replace(mlp, seed=1), "random"))


def test_wanda_weighs_columns_by_what_enters(mlp: Evidence) -> None:
    x = torch.cat([x for (x,) in mlp.learnt.batches()]).double().numpy()
    hidden = np.maximum(x @ weight(mlp, "0.weight").T + weight(mlp, "0.bias"), 0)
    expected = (hidden**2).mean(0) * (weight(mlp, "2.weight") ** 2).sum(0)
    np.testing.assert_allclose(importance(mlp, "wanda"), expected / expected.mean(), rtol=1e-5)


def test_apoz_counts_what_is_not_zero(mlp: Evidence) -> None:
    x = torch.cat([x for (x,) in mlp.learnt.batches()]).double().numpy()
    hidden = x @ weight(mlp, "0.weight").T + weight(mlp, "0.bias")
    found = importance(mlp, "apoz")
    batches = [h > 0 for h in np.split(hidden, range(mlp.learnt.batch, len(hidden), mlp.learnt.batch))]
    np.testing.assert_allclose(found, np.mean([b.mean(0) for b in batches], axis=0))


def test_apoz_says_where_zeros_tell_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    scores = score("apoz", make(model, torch.zeros(2, 3), inputs=torch.randn(50, 3)))
    assert scores.notes == ("zeros tell nothing of 0: no unit there is zero more often than another",)


def test_near_zero_counts_weights_above_a_hundredth(mlp: Evidence) -> None:
    state = {key: tensor.detach().clone() for key, tensor in mlp.state.items()}
    state["0.weight"][2, :3] = 0
    found = importance(replace(mlp, state=state), "near-zero")
    filters, columns = state["0.weight"].double().numpy(), weight(mlp, "2.weight").T
    shares = [(abs(w) > 0.01 * np.sqrt((w**2).mean())).mean(1) for w in (filters, columns)]
    assert shares[0][2] <= 0.25
    np.testing.assert_allclose(found, (shares[0] + shares[1]) / 2)


def test_taylor_is_the_squared_product_of_weights_and_gradients(mlp: Evidence) -> None:
    labels = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(0))
    found = importance(replace(mlp, labels=labels), "taylor")
    leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in mlp.state.items()}
    expected, seen = np.zeros(5), 0
    for (x,) in mlp.learnt.batches():
        (answer, *_), _ = Replay(mlp.graph, leaves).run(x)
        loss = nn.functional.cross_entropy(answer, labels[seen : seen + len(x)])
        seen += len(x)
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        product = {key: (leaves[key] * grads[key]).detach().double().numpy() for key in leaves}
        expected += (product["0.weight"].sum(1) + product["0.bias"] + product["2.weight"].sum(0)) ** 2
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-4)


def test_fisher_tells_how_the_loss_bends() -> None:
    """For a Gaussian answer the Fisher information of a bias is known: 1 / (2 n) of each squared weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    evidence = make(model, torch.zeros(2, 3), inputs=torch.randn(64, 3))
    found = importance(evidence, "fisher")
    assert (found > 0).all()
    larger = {key: tensor * 2 if key == "0.weight" else tensor for key, tensor in evidence.state.items()}
    assert importance(replace(evidence, state=larger), "fisher").sum() > found.sum()


def loss_of(evidence: Evidence, labels: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """The mean over the calibration's batches of the cross-entropy of the MLP, as a function of its weights."""

    def loss(state: dict[str, Tensor]) -> Tensor:
        parts = []
        for inputs, wanted in zip(
            evidence.learnt.batches(), labels.split(evidence.learnt.batch), strict=True
        ):
            hidden = torch.relu(inputs[0].double() @ state["0.weight"].T + state["0.bias"])
            answer = hidden @ state["2.weight"].T + state["2.bias"]
            parts.append(nn.functional.cross_entropy(answer, wanted))
        return torch.stack(parts).mean()

    return loss


def labelled(evidence: Evidence) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels, and the weights in double precision."""
    labels = torch.randint(0, 3, (evidence.learnt.count,), generator=torch.Generator().manual_seed(0))
    return labels, {key: tensor.detach().double() for key, tensor in evidence.state.items()}


def test_snip_is_the_share_of_absolute_products_of_weights_and_gradients(mlp: Evidence) -> None:
    labels, state = labelled(mlp)
    grads = torch.func.grad(loss_of(mlp, labels))(state)
    felt = {key: (state[key] * grads[key]).abs().numpy() for key in state}
    expected = felt["0.weight"].sum(1) + felt["0.bias"] + felt["2.weight"].sum(0)
    whole = sum(value.sum() for value in felt.values())
    np.testing.assert_allclose(importance(replace(mlp, labels=labels), "snip"), expected / whole, rtol=1e-4)


def test_grasp_is_the_product_of_weights_and_an_explicit_hessian(mlp: Evidence) -> None:
    labels, state = labelled(mlp)
    sizes = {key: tensor.numel() for key, tensor in state.items()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(list(sizes.values()))
        return loss_of(mlp, labels)(
            {key: part.reshape(state[key].shape) for key, part in zip(sizes, parts, strict=True)}
        )

    weights = torch.cat([tensor.flatten() for tensor in state.values()])
    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    flow = dict(zip(sizes, (weights * (hessian @ gradient)).split(list(sizes.values())), strict=True))
    flow = {key: value.reshape(state[key].shape) for key, value in flow.items()}
    expected = (flow["0.weight"].sum(1) + flow["0.bias"] + flow["2.weight"].sum(0)).numpy()
    scores = score("grasp", replace(mlp, labels=labels))
    assert scores.order["0"].tolist() == np.argsort(expected).tolist()
    # What gradients gain costs nothing.
    np.testing.assert_allclose(
        scores.marginal("0"), np.maximum(np.sort(expected), 0), rtol=1e-3, atol=1e-3 * abs(expected).max()
    )


def test_grasp_of_an_op_that_bends_only_once_says_what_to_do() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    words = torch.randint(0, 9, (2, 5))
    given = make(model, words, inputs=torch.randint(0, 9, (8, 5)))
    with pytest.raises(UserError, match=r"differentiates the loss twice.*_embedding_bag.* Use 'snip'"):
        score("grasp", given)
    assert np.isfinite(importance(given, "snip", given.graph.groups[0].name)).all()


def test_synflow_is_the_product_of_absolute_weights(mlp: Evidence) -> None:
    """Without data: the sum over all paths from an input through a unit to an output."""
    first, second = abs(weight(mlp, "0.weight")), abs(weight(mlp, "2.weight"))
    through = second.sum(0) * first.sum(1)
    expected = 2 * through / through.sum()  # once for the filter, once for the column that reads it
    found = importance(replace(mlp, calibration=None), "synflow")
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_synflow_of_hundreds_of_layers_stays_finite() -> None:
    """The product of 300 layers is about 1e+800; by hand it is scaled down layer by layer."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, bias=False) for _ in range(300)]
    model = nn.Sequential(nn.Linear(3, 8), *[nn.Sequential(layer, nn.ReLU()) for layer in layers])
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(300)
    evidence = make(model, torch.zeros(1, 3))
    before = np.ones(3) @ abs(weight(evidence, "0.weight")).T
    after = np.ones(8)
    for number in range(300, 0, -1):
        after = after @ abs(weight(evidence, f"{number}.0.weight"))
        after = after / after.sum()
    through = before * after / (before @ after)
    np.testing.assert_allclose(importance(evidence, "synflow"), 2 * through, rtol=1e-9)


def test_synflow_takes_batch_normalisation_for_its_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(12, 2)
    )
    model[1].running_var.copy_(torch.tensor([1.0, 4.0, 9.0, 0.25]))
    model[1].running_mean.fill_(5)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    evidence = make(model, torch.zeros(1, 2, 2, 2))
    scale = abs(weight(evidence, "1.weight")) / np.sqrt(weight(evidence, "1.running_var") + 1e-5)
    first, last = (abs(weight(evidence, name))[:, :, 0, 0] for name in ("0.weight", "3.weight"))
    read = abs(weight(evidence, "5.weight")).sum(0).reshape(3, 4).sum(1)
    through = first.sum(1) * scale * (read @ last)
    np.testing.assert_allclose(importance(evidence, "synflow"), 2 * through / through.sum(), rtol=1e-9)


@pytest.mark.parametrize("network", ["residual", "multihead_attention", "fused_qkv", "lstm", "group_norm"])
def test_synflow_reaches_every_group(network: str) -> None:
    assert score("synflow", cases.evidence(network)).notes == ()


@pytest.mark.parametrize("network", ["multihead_attention", "fused_qkv"])
def test_products_of_flows_let_no_more_through_than_enters(network: str) -> None:
    """What flows through any weight is a share of the whole: nothing is counted twice on its way."""
    given = cases.evidence(network)
    flow = synaptic_flow(given.graph, given.state)
    assert all((value >= 0).all() for value in flow.values())
    assert max(float(value.sum()) for value in flow.values()) == pytest.approx(1)


def test_synflow_says_where_nothing_flows() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[2].weight)
    evidence = make(model, torch.zeros(2, 3))
    scores = score("synflow", evidence)
    assert scores.notes == ("no flow reaches the units of 0: L2 magnitude was used there",)
    assert scores.order["0"].tolist() == score("l2", evidence).order["0"].tolist()


def test_reconstruction_takes_a_copy_before_anything_else() -> None:
    """Unit 1 repeats unit 4: either can go for nothing, then the other cannot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[4]
        model[0].bias[1] = model[0].bias[4]
    scores = score("reconstruction", make(model, torch.zeros(2, 6), inputs=torch.randn(300, 6)))
    assert scores.order["0"][0] in (1, 4)
    assert scores.error["0"][1] < 0.01 * scores.error["0"][2]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("norm", "removed"),
    [
        (nn.utils.parametrizations.weight_norm, "parametrize.remove_parametrizations(layer, 'weight')"),
        (nn.utils.weight_norm, "remove_weight_norm(layer)"),
    ],
    ids=["parametrised", "older"],
)
@pytest.mark.parametrize("name", ["reconstruction", "wanda"])
def test_weights_that_are_worked_out_in_each_pass_are_told(
    name: str, norm: Callable[[nn.Module], nn.Module], removed: str
) -> None:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    notes = score(
        name, make(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), norm(nn.Linear(8, 3))), x, inputs=x)
    ).notes
    assert notes[0] == "no layer reads the units of 0: L2 magnitude was used there"
    assert f"`torch.nn.utils.{removed}`" in notes[1]
    plain = make(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), x, inputs=x)
    assert score(name, plain).notes == ()


def test_reconstruction_error_is_the_least_squares_residual(mlp: Evidence) -> None:
    """Against SciPy on the activations themselves, the mean included for the bias that restores it."""
    from scipy.linalg import lstsq

    scores = score("reconstruction", mlp)
    x = torch.cat([x for (x,) in mlp.learnt.batches()]).double().numpy()
    hidden = np.maximum(x @ weight(mlp, "0.weight").T + weight(mlp, "0.bias"), 0)
    y = (hidden - hidden.mean(0)) @ weight(mlp, "2.weight").T
    for count in range(1, 5):
        kept = np.delete(hidden, scores.order["0"][:count], axis=1)
        kept = kept - kept.mean(0)
        solution = lstsq(kept, y)[0]
        residual = ((y - kept @ solution) ** 2).sum() / (y**2).sum()
        assert scores.error["0"][count] == pytest.approx(residual, rel=0.05, abs=2e-3)


def test_reconstruction_adds_up_over_the_readers_of_a_group() -> None:
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.stem(x))
            return self.a(h), self.b(h)

    scores = score("reconstruction", make(Two(), torch.zeros(2, 4), inputs=torch.randn(200, 4)))
    assert scores.error["stem"][-1] == pytest.approx(2, rel=0.01)
