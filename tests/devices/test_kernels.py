"""Workloads: MACs and parameters against PyTorch's own counts and against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sned.devices import cost_model, find_device
from sned.devices.kernel_rules import workload
from sned.devices.kernels import Extent, Workload
from sned.devices.layout import launches
from sned.graph import trace
from sned.graph.replay import Replay, slice_state
from sned.graph.trace import state_of
from tests.devices.networks import Mixed, Residual, plan_of, random_counts, sizes
from tests.graph.networks import NETWORKS

COUNTED = (
    "residual", "dense", "multi_branch", "flattened", "depthwise", "depthwise_multiplier", "grouped",
    "grouped_twice", "transposed", "transposed_grouped", "squeeze_excite", "channel_shuffle",
    "channel_split", "pixel_shuffle", "group_norm", "layer_norm", "batch_norm", "instance_norm", "rms_norm",
    "fused_qkv", "glu", "swiglu", "lstm_cell", "windowed_attention", "tied_weights", "conv_1d", "conv_3d",
    "shared_twice", "unet",
)  # fmt: skip
"""Networks whose every product PyTorch's counter knows, too."""


def macs_of(run: Callable[[], object]) -> float:
    """Half of PyTorch's floating point operations: the oracle."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def figures(work: Workload, counts: np.ndarray[Any, Any]) -> tuple[float, float]:
    at = work.sizes_of(counts[None])
    return (
        float(sum(kernel.macs.at(at)[0] for kernel in work.kernels)),
        float(sum(extent.at(at)[0] for extent in work.parameters.values())),
    )


@pytest.mark.parametrize("name", COUNTED)
def test_macs_and_parameters_are_those_of_pytorch(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    model.eval()
    graph = trace(model, inputs)
    work = workload(graph, batch=inputs[0].shape[0])
    state = state_of(model)
    parameters = {name for name, _ in model.named_parameters()} - set(graph.unread)
    dense = macs_of(partial(model, *inputs)), sum(state[name].numel() for name in parameters)
    assert figures(work, sizes(graph)) == dense
    counts = random_counts(graph, np.random.default_rng(0), 0.3, 0.8)
    plan = plan_of(graph, counts)
    sliced = slice_state(state, plan)
    pruned = (
        macs_of(partial(Replay(graph, state, plan).run, inputs)),
        sum(sliced[name].numel() for name in parameters),
    )
    assert figures(work, counts) == pruned


def test_macs_grow_with_the_batch() -> None:
    graph = trace(Residual().eval(), torch.randn(1, 3, 16, 16))
    one, five = (figures(workload(graph, batch), sizes(graph)) for batch in (1, 5))
    assert five == (5 * one[0], one[1])


def test_closed_form_of_one_convolution() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 10, 12))
    work = workload(graph)
    for kept in (8, 5, 1):
        macs, parameters = figures(work, np.array([float(kept)]))
        assert macs == 10 * 12 * (3 * 9 * kept + kept * 4)
        assert parameters == 3 * 9 * kept + kept + kept * 4 + 4


def test_batchnorm_and_activation_are_folded_into_convolutions() -> None:
    work = workload(trace(Residual(16).eval(), torch.randn(1, 3, 16, 16)))
    kinds = [(kernel.kind, kernel.op, kernel.activation) for kernel in work.kernels]
    block = [("conv", "", "Relu"), ("conv", "", ""), ("elementwise", "Add", ""), ("elementwise", "Relu", "")]
    down = [block[0], block[1], ("conv", "", ""), *block[2:]]
    assert kinds[:2] == [("conv", "", "Relu"), ("pool", "MaxPool", "")]
    assert kinds[2:15] == [*block, *down, *block]
    assert [kernel.kind for kernel in work.kernels[15:]] == ["reduce", "linear"]
    stem = work.kernels[0]
    assert stem.biased
    folded = {f"stem.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert set(stem.parameters) == {"stem.0.weight", "stem.0.bias", *folded}


def test_what_a_file_stores_has_batchnorms_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    work = workload(trace(model.eval(), torch.randn(1, 3, 8, 8)))
    stored = sum(extent.at(work.dense)[0] for extent in work.stored)
    assert stored == (3 * 8 * 9 + 8) + (8 * 4 + 4)


def test_a_batchnorm_that_stands_alone_is_a_kernel() -> None:
    work = workload(trace(Mixed().eval(), torch.randn(1, 3, 8, 8)))
    assert [kernel.kind for kernel in work.kernels].count("norm") == 1


def test_constants_cost_nothing() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(x, self.conv.weight * self.scale.exp())

    work = workload(trace(Scaled(), torch.randn(1, 3, 4, 4)))
    assert [kernel.kind for kernel in work.kernels] == ["conv"]
    assert set(work.kernels[0].parameters) == {"conv.weight", "scale"}


def test_in_place_ops_make_new_values() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Dropout(), nn.Hardtanh(inplace=True), nn.Conv2d(4, 2, 1)
    )
    work = workload(trace(net.eval(), torch.randn(1, 3, 4, 4)))
    assert [(kernel.kind, kernel.op, kernel.activation) for kernel in work.kernels] == [
        ("conv", "", "Relu"),
        ("elementwise", "Clip", ""),
        ("conv", "", ""),
    ]
    assert [kernel.inputs for kernel in work.kernels[1:]] == [(k.output,) for k in work.kernels[:2]]


def test_extents_multiply() -> None:
    at = np.array([[2.0, 3.0], [4.0, 5.0]])
    product = Extent(2.0, (0,)) * Extent(0.5, (1, 1)) * 3.0
    np.testing.assert_array_equal(product.at(at), [3 * 2 * 9, 3 * 4 * 25])


def test_sizes_are_whole_numbers() -> None:
    model, inputs = NETWORKS["multi_branch"]()
    graph = trace(model, inputs)
    work = workload(graph)
    rng = np.random.default_rng(0)
    at = work.sizes_of(np.array([random_counts(graph, rng) for _ in range(50)]))
    np.testing.assert_array_equal(at, np.rint(at))


@pytest.mark.parametrize("name", ["windowed_attention", "fused_qkv", "channel_shuffle", "unet"])
def test_every_value_has_the_elements_of_its_tensor(name: str) -> None:
    """Also where the last axis is what a plan changes, behind axes that it does not."""
    model, inputs = NETWORKS[name]()
    work = workload(trace(model.eval(), inputs), batch=inputs[0].shape[0])
    for value in work.values:
        ratio = float(value.batch.at(work.dense)[0]) / max(1, value.shape[0] if value.shape else 1)
        assert float(value.elements.at(work.dense)[0]) == np.prod(value.shape) * ratio


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_a_recurrent_layer_runs_as_one_op(kind: type[nn.RNNBase], gates: int) -> None:
    """As in the exported file. The first step's state is zero: nothing is multiplied with it."""
    inputs, units, steps = 6, 10, 7
    work = workload(trace(kind(inputs, units, batch_first=True), torch.randn(2, steps, inputs)), batch=3)
    run = [
        (launch.family.recipe, *(int(width[0]) for width in launch.widths))
        for launch in launches(work, work.dense, 1)
    ]
    wide = gates * units
    assert sorted(run) == [("gemm", 3 * (steps - 1), units, wide), ("gemm", 3 * steps, inputs, wide)]
    macs = 3 * wide * (steps * inputs + (steps - 1) * units)
    assert sum(kernel.macs.at(work.dense)[0] for kernel in work.kernels) == macs
    assert work.weights_of(work.dense)[0] == wide * (inputs + units)


def test_a_recurrent_layer_is_told_by_its_products() -> None:
    graph = trace(nn.LSTM(6, 10, batch_first=True), torch.randn(2, 7, 6))
    layers = cost_model(graph, find_device("pixel-9")).layers(sizes(graph))
    assert [layer.kind for layer in layers] == ["call", "linear", "linear"]
    assert sum(layer.parameters for layer in layers) == 4 * 10 * (6 + 10 + 2)


def test_a_recurrent_layer_that_is_exported_step_by_step_runs_so() -> None:
    work = workload(trace(nn.RNN(6, 10, batch_first=True), torch.randn(2, 7, 6)))
    products = [launch for launch in launches(work, work.dense, 1) if launch.family.recipe == "gemm"]
    assert len(products) >= 7
