import copy

import torch
from torch import nn

from sned.graph.trace import state_of, trace
from sned.repair import blended, load_state, reestimate
from sned.repair.batchnorm import answers_by_batch
from sned.surgery import apply
from tests.repair.networks import block, images


def trained_statistics(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What PyTorch's own training mode makes of equal batches, averaged."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {name: t for name, t in model.named_buffers() if "running" in name}


def test_statistics_are_those_of_training_mode_on_the_pruned_module() -> None:
    model = block()
    graph = trace(model, images(2))
    plan = graph.plan({"conv1": [0, 3, 4], "stem": [1]})
    small = apply(model, plan)
    batches = [images(16, seed) for seed in (1, 2, 3)]
    found = reestimate(graph, state_of(small), batches, plan)
    expected = trained_statistics(small, batches)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Training mode keeps the unbiased variance of a batch.
        count = 16 * 8 * 8 if "var" in name else None
        wanted = value * (count - 1) / count if count else value
        torch.testing.assert_close(found[name], wanted, atol=1e-4, rtol=1e-3)


def test_answers_by_batch_are_those_of_training_mode() -> None:
    model = block()
    graph = trace(model, images(2))
    plan = graph.plan({"conv1": [0, 3, 4], "stem": [1]})
    small = apply(model, plan)
    batches = [images(16, seed) for seed in (1, 2)]
    (found,) = answers_by_batch(graph, state_of(small), batches, plan)
    small.train()
    with torch.no_grad():
        expected = torch.cat([small(batch) for batch in batches])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_blending_moves_statistics_only() -> None:
    model = block()
    graph = trace(model, images(2))
    state = {name: t.detach() for name, t in state_of(model).items()}
    statistics = reestimate(graph, state, [images()])
    half = blended(state, statistics, 0.5)
    for name, value in state.items():
        wanted = (value + statistics[name]) / 2 if name in statistics else value
        torch.testing.assert_close(half[name], wanted)
    load_state(model, blended(state, statistics, 1.0))
    torch.testing.assert_close(model.bn1.running_mean, statistics["bn1.running_mean"])
