"""Which kernels run at which widths, against what the installed ONNX Runtime makes of the pruned network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import sned
from sned.devices.kernel_rules import workload
from sned.devices.kernels import Workload
from sned.devices.layout import Launch, launches
from sned.devices.probe import block_size
from sned.graph import trace
from sned.runtime import session_options
from sned.surgery import apply
from tests.devices.networks import Encoder, Mixed, Residual, Swish, plan_of, random_counts, sizes, trained

BLOCKED = "blocked "
OPERATORS = {
    "direct_conv": BLOCKED + "Conv", "blocked_conv": BLOCKED + "Conv", "plain_conv": "Conv",
    "blocked_depthwise": BLOCKED + "Conv", "plain_depthwise": "Conv",
    "blocked_grouped": BLOCKED + "Conv", "plain_grouped": "Conv",
    "reorder_input": BLOCKED + "ReorderInput", "reorder_output": BLOCKED + "ReorderOutput",
    "concat": "Concat", "gemm": "Gemm", "reduce": "ReduceMean", "norm": "BatchNormalization",
}  # fmt: skip
DECOMPOSED = {"HardSwish": ["HardSigmoid", "Mul"]}


def operators_predicted(made: list[Launch], plan: int = 0) -> Counter[str]:
    names = []
    for launch in made:
        if launch.where[plan]:
            op = str(dict(launch.family.statics).get("op", ""))
            pooled = BLOCKED + op if launch.family.recipe == "blocked_pool" else op
            names += DECOMPOSED.get(op, [OPERATORS.get(launch.family.recipe, pooled)])
    return Counter(names)


def operators_made(model: nn.Module, inputs: torch.Tensor, folder: Path) -> Counter[str]:
    """What the runtime makes of the model: the oracle."""
    # The old exporter writes the same operators as the new one, thirty times faster.
    torch.onnx.export(model, (inputs,), str(folder / "model.onnx"), dynamo=False)
    options = session_options(1)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = []
    for node in onnx.load(folder / "optimised.onnx").graph.node:
        name = "Conv" if node.op_type == "FusedConv" else node.op_type
        names.append(BLOCKED + name if node.domain.endswith("nchwc") else name)
    return Counter(names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Residual, Mixed, Swish])
def test_the_kernels_are_those_that_the_runtime_makes(make: type[nn.Module], tmp_path: Path) -> None:
    model, inputs = trained(make()), torch.randn(1, 3, 16, 16)
    graph = trace(model, inputs)
    work = workload(graph)
    rng = np.random.default_rng(0)
    plans = np.array([sizes(graph), *(random_counts(graph, rng) for _ in range(8))])
    made = launches(work, work.sizes_of(plans), block_size())
    for index, counts in enumerate(plans):
        small = apply(model, plan_of(graph, counts))
        assert operators_predicted(made, index) == operators_made(small, inputs, tmp_path), counts


def test_the_kernels_of_a_transformer_are_those_that_the_runtime_makes(tmp_path: Path) -> None:
    """A bias is an addition of its own, unless a Gelu or the sum before a norm takes it in."""
    model, inputs = trained(Encoder()), torch.randn(1, 12, 64)
    exported = sned.export_onnx(model, inputs, tmp_path / "model.onnx")
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    work = workload(trace(model, inputs))
    predicted = operators_predicted(launches(work, work.dense, 1))
    told = {
        "Gemm": made["Gemm"] + made["MatMul"], "Gelu": made["BiasGelu"], "Add": made["Add"],
        "SkipLayerNormalization": 2, "Tanh": 1,
    }  # fmt: skip
    assert made["SkipLayerNormalization"] == 2
    assert made["BiasGelu"] == 2
    assert {name: predicted[name] for name in told} == told


@pytest.fixture(scope="module")
def residual() -> Workload:
    return workload(trace(Residual().eval(), torch.randn(1, 3, 16, 16)))


@pytest.mark.parametrize("block", [8, 16])
def test_a_plan_costs_the_same_in_any_company(residual: Workload, block: int) -> None:
    graph_sizes = np.array(residual.group_sizes, dtype=np.float64)
    plans = np.array([np.ceil(graph_sizes * share) for share in (1.0, 0.6, 0.5, 0.31, 0.1)])
    together = launches(residual, residual.sizes_of(plans), block)
    for index, plan in enumerate(plans):
        alone = launches(residual, residual.sizes_of(plan[None]), block)
        assert [launch.family for launch in alone] == [launch.family for launch in together]
        assert [launch.where[0] for launch in alone] == [launch.where[index] for launch in together]


def test_without_blocks_nothing_is_reordered(residual: Workload) -> None:
    made = launches(residual, residual.dense, 1)
    recipes = {launch.family.recipe for launch in made}
    assert not any(recipe.startswith(("blocked", "direct", "reorder")) for recipe in recipes)
    assert operators_predicted(made)["Conv"] == 8


def test_every_kernel_of_a_convolution_runs_once(residual: Workload) -> None:
    rng = np.random.default_rng(0)
    plans = np.ceil(np.array(residual.group_sizes) * rng.uniform(0.02, 1, (200, len(residual.group_sizes))))
    runs = Counter[int]()
    total = np.zeros(len(plans))
    for launch in launches(residual, residual.sizes_of(plans), 16):
        if launch.family.recipe.endswith("_conv"):
            total += launch.where
            runs[launch.kernel] += 1
    np.testing.assert_array_equal(total, 8)
    assert len(runs) == 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "norm", "shape"), [(nn.Linear(6, 16), nn.BatchNorm1d(16), (3, 6)), (nn.Conv1d(6, 16, 3), nn.BatchNorm1d(16), (3, 6, 9))]
)  # fmt: skip
def test_a_norm_of_what_is_no_image_is_never_in_blocks(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model, inputs = trained(nn.Sequential(layer, nn.Sigmoid(), norm)), torch.randn(shape)
    graph = trace(model, inputs)
    work = workload(graph)
    made = launches(work, work.sizes_of(np.array([sizes(graph)])), block_size())
    assert not [launch for launch in made if launch.family.recipe.startswith("blocked")]
    assert operators_predicted(made)["BatchNormalization"] == 1
    assert operators_made(model, inputs, tmp_path)["BatchNormalization"] == 1
