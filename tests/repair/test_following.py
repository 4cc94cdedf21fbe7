import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sned.calibration import consumers
from sned.graph.trace import trace
from sned.repair.following import Following, Step, followings, norms
from tests.repair.networks import block, same_twice


def after(model: nn.Module, x: Tensor) -> dict[str, Following]:
    graph = trace(model, x)
    found = consumers(graph)
    return {consumer.weight: followings(graph, found)[consumer.op] for consumer in found}


@pytest.mark.parametrize("late", [False, True])
def test_a_residual_block(late: bool) -> None:
    found = after(block(late=late), torch.zeros(2, 3, 8, 8))
    first, second = found["conv1.weight"], found["conv2.weight"]
    assert first.norm is not None
    assert (first.norm.mean, first.other, first.low, first.high) == ("bn1.running_mean", None, 0.0, math.inf)
    assert second.norm is not None
    assert (second.norm.variance, second.norm.weight, second.norm.bias) == (
        "bn2.running_var",
        "bn2.weight",
        "bn2.bias",
    )
    assert second.other is not None
    assert second.clamped
    assert found["stem.weight"] == Following()  # read by the block and by the sum
    assert found["head.weight"] == Following()


def test_a_late_bias_is_not_the_other_side_of_a_sum() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 4), nn.Hardtanh(-2, 3))
    found = after(model, torch.zeros(2, 5, 4))
    assert [(f.low, f.high, f.other) for f in found.values()] == [(0.0, 6.0, None), (-2.0, 3.0, None)]


def test_a_sum_with_what_comes_later_or_is_changed_meanwhile_is_no_target() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    class Changed(Later):
        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return b + a.mul_(2.0)

    class Told(Later):
        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return b + (a * 2.0).mul_(3.0)

    x = torch.zeros(2, 3, 4, 4)
    assert [f.other is not None for f in after(Later(), x).values()] == [False, True]
    assert [f.other is not None for f in after(Told(), x).values()] == [False, True]
    assert [f.other is not None for f in after(Changed(), x).values()] == [False, False]


def test_a_norm_written_out_behind_a_permute_is_a_line_by_channel() -> None:
    found = after(same_twice()[1], torch.zeros(2, 3, 8, 8))
    second = found["conv2.weight"]
    assert second.norm is None
    assert second.order == (0, 2, 3, 1)
    assert [step.kind for step in second.line if isinstance(step, Step)] == ["add", "sub", "mul", "add"]
    assert (second.other is not None, second.low, second.high) == (True, 0.0, math.inf)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda y, p: y * p, ["mul"]),
        (lambda y, p: y / p.exp() - p, ["div", "sub"]),
        (lambda y, p: y + p.sum(), ["add"]),
        (lambda y, p: 1.0 - y, None),
        (lambda y, p: p - y, None),
        (lambda y, p: y * p.reshape(1, 1, 4), None),
        (lambda y, p: y * y.mean(), None),
    ],
)
def test_only_a_line_by_channel_is_looked_through(
    change: Callable[[Tensor, Tensor], Tensor], line: list[str] | None
) -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.p = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return change(self.a(x), self.p).relu()

    found = after(Changed().eval(), torch.zeros(2, 3, 4, 4))["a.weight"]
    assert [step.kind for step in found.line if isinstance(step, Step)] == (line or [])
    assert found.clamped == (line is not None)


def test_a_norm_that_is_called_twice_takes_up_no_bias() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.b(self.norm(self.a(x))))

    graph = trace(Twice().eval(), torch.zeros(2, 3, 4, 4))
    assert len(norms(graph)) == 2
    assert all(f.norm is None for f in followings(graph, consumers(graph)).values())


def test_a_norm_behind_a_reshape_is_not_by_channel() -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x).view(-1, 3, 2))

    assert after(Reshaped().eval(), torch.zeros(2, 4))["linear.weight"].norm is None
