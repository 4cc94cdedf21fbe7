"""The curvature of the answers against networks that are cut for real."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.calibration import calibrate
from sned.calibration.curvature import _Pull
from sned.graph.trace import state_of, trace
from sned.saliency import Evidence, curvatures, read_alone, score, sensitivities
from tests.graph.networks import NETWORKS
from tests.saliency.cases import evidence


def evidence_of(model: nn.Module, count: int, *shape: int) -> Evidence:
    """With a calibration on random inputs of a mean other than zero."""
    generator = torch.Generator().manual_seed(1)
    graph = trace(model.eval(), torch.randn(2, *shape, generator=generator))
    state = state_of(graph.model)
    batches = [torch.randn(count, *shape, generator=generator) + 0.5]
    return Evidence(graph, state, calibrate(graph, state, batches))


class TwoReaders(nn.Module):
    """What one reader of the units loses, the other, which has the same weights, loses too; a late bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 4), nn.Conv2d(8, 5, 4, bias=False)
        self.late = nn.Parameter(torch.randn(5, 1, 1))
        with torch.no_grad():
            self.c.weight.copy_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) + (self.c(x) + self.late)


def test_what_two_readers_lose_is_added_before_it_is_squared() -> None:
    torch.manual_seed(0)
    given = evidence_of(TwoReaders(), 2048, 3, 6, 6)
    scores = score("reconstruction", given)
    told, real = (of(given, scores, inputs=2048)["a"].divergence for of in (curvatures, sensitivities))
    np.testing.assert_allclose(told, real, rtol=0.15)


def straight(count: int, classes: bool = False) -> Evidence:
    """A network without any bend, so that the error of the answers is a square of what a cut changes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5)
    )
    if classes:
        with torch.no_grad():
            model[4].weight.mul_(0.1)
    else:
        model.append(nn.Unflatten(1, (1, 5)))
    return evidence_of(model, count, 3, 6, 6)


@pytest.mark.parametrize("repairable", ["reconstruction", "l2"])
def test_a_straight_network_is_told_exactly_but_for_the_draws(repairable: str) -> None:
    given = straight(2048)
    scores = score(repairable, given)
    found = curvatures(given, scores, inputs=2048)
    real = sensitivities(given, scores, inputs=2048)
    assert found.keys() == real.keys() == {"0", "1"}
    for name, told in found.items():
        assert told.removed == real[name].removed
        np.testing.assert_allclose(told.divergence, real[name].divergence, rtol=0.15)


def test_more_inputs_come_nearer() -> None:
    given = straight(2048)
    scores = score("reconstruction", given)
    real = np.concatenate([s.divergence for s in sensitivities(given, scores, inputs=2048).values()])
    off = []
    for inputs in (16, 2048):
        told = np.concatenate([s.divergence for s in curvatures(given, scores, inputs=inputs).values()])
        off.append(np.abs(np.log(told / real)).mean())
    assert off[1] < 0.5 * off[0]


def test_small_changes_of_classes_are_told() -> None:
    """A divergence is a square only of changes so small that the distribution hardly moves."""
    given = straight(2048, classes=True)
    scores = score("reconstruction", given)
    told, real = (of(given, scores, points=(0.15,), inputs=2048) for of in (curvatures, sensitivities))
    for name in real:
        assert told[name].divergence[0] == pytest.approx(real[name].divergence[0], rel=0.3)


@pytest.mark.parametrize(
    "network",
    ["residual", "multi_branch", "grouped_twice", "transposed", "squeeze_excite", "channel_shuffle", "pixel_shuffle",
     "unet", "windows", "weight_norm", "fused_qkv", "separate_projections", "grouped_query", "swiglu", "conv_3d"],
)  # fmt: skip
def test_agrees_with_networks_that_are_cut(network: str) -> None:
    """On 32 inputs, through every kind of reader; a wrong term is off by more than the draws."""
    given = evidence(network)
    scores = score("reconstruction", given)
    told, real = (of(given, scores, points=(0.25, 0.5), inputs=32) for of in (curvatures, sensitivities))
    assert told
    ratios = [np.log((told[n].divergence + 1e-9) / (real[n].divergence + 1e-9)) for n in told]
    assert abs(np.median(np.concatenate(ratios))) < 0.7


def groups_told(network: str) -> tuple[int, int]:
    given = evidence(network)
    return len(read_alone(given.graph, given.learnt.consumers)), len(given.graph.groups)


@pytest.mark.parametrize(
    "network", ["residual", "multi_branch", "depthwise", "squeeze_excite", "unet", "channel_split"]
)
def test_all_groups_of_a_convolutional_network_are_felt_by_readers_alone(network: str) -> None:
    told, groups = groups_told(network)
    assert told == groups > 0


@pytest.mark.parametrize(
    "network", ["layer_norm", "group_norm", "rms_norm", "lstm", "gru", "tied_weights", "shared_twice"]
)
def test_norms_recurrence_and_shared_weights_are_cut_for_real(network: str) -> None:
    assert groups_told(network)[0] == 0


def test_queries_and_keys_are_cut_for_real_and_heads_are_not() -> None:
    given = evidence("fused_qkv")
    readers = {read.group for consumer in given.learnt.consumers for read in consumer.reads}
    told = {group.index for group in read_alone(given.graph, given.learnt.consumers)}
    assert told
    assert told < {group.index for group in given.graph.groups}
    assert told <= readers


class Written(nn.Module):
    """Activation functions that write into what a convolution gave, or do not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(inplace),
            nn.Conv2d(6, 5, 3),
            nn.ReLU(inplace),
            nn.Flatten(),
            nn.Linear(20, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x)
        return made


def test_what_is_written_in_place_is_told_the_same() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        given = evidence_of(Written(inplace), 64, 3, 6, 6)
        told = curvatures(given, score("reconstruction", given))
        found.append(np.concatenate([told[name].divergence for name in sorted(told)]))
    assert found[0].min() > 0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_answers_that_cannot_be_derived_are_left_to_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = evidence("residual")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("derivative for aten::op is not implemented")

    monkeypatch.setattr("torch.autograd.grad", refuse)
    assert curvatures(given, score("reconstruction", given)) == {}


def test_whole_numbers_are_no_answers() -> None:
    class Both(nn.Module):
        """Logits, and the class that they say."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.b(torch.tanh(self.a(x)))
            return logits.argmax(1), logits

    torch.manual_seed(0)
    given = evidence_of(Both(), 512, 5)
    scores = score("reconstruction", given)
    told, real = (of(given, scores, points=(0.25,), inputs=512) for of in (curvatures, sensitivities))
    assert told["a"].divergence[0] == pytest.approx(real["a"].divergence[0], rel=0.4)


def test_the_same_is_told_twice_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    given = evidence("residual")
    scores = score("reconstruction", given)
    first = curvatures(given, scores)
    again = curvatures(given, scores)
    monkeypatch.setattr("sned.calibration.curvature.HELD", 1)
    single = curvatures(given, scores)
    for name in first:
        np.testing.assert_array_equal(first[name].divergence, again[name].divergence)
        assert np.abs(np.log(single[name].divergence / first[name].divergence)).max() < 1.5  # other draws


def test_every_network_is_told_or_left(subtests: pytest.Subtests) -> None:
    """No kind of network breaks it."""
    for name in (
        "transformer_encoder_layer",
        "auxiliary",
        "returns_dict",
        "embedding_bag",
        "einsum_heads",
        "instance_norm",
    ):
        with subtests.test(name):
            assert name in NETWORKS
            told = curvatures(evidence(name), score("reconstruction", evidence(name)))
            assert all(np.isfinite(one.divergence).all() for one in told.values())


def test_masked_answers_weigh_nothing() -> None:
    torch.manual_seed(0)
    plain = torch.randn(30, 4)
    masked = torch.cat([plain, torch.full((30, 2), -torch.inf)], 1)
    for shape in ((30, -1), (30, 1, -1)):  # of classes, and of none
        scales = [_Pull([answers.reshape(shape)], 30, 0)._scales[0] for answers in (plain, masked)]
        assert 0 < scales[0] <= scales[1] < torch.inf
