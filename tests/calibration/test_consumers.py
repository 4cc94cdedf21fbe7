"""Every consumer, seen as matrices over patches, must compute what the op computed."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sned.calibration import Consumer, consumers
from sned.calibration.consumers import layout
from sned.calibration.patches import chunks, share_of
from sned.graph import Graph, Plan
from sned.graph.replay import Replay, keep_of
from sned.graph.sizes import Sizes
from sned.graph.trace import state_of, trace


class Tokens(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8, bias=bias)
        self.outer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x.transpose(1, 2)).relu())


def _images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


CASES = {
    "plain": (_images(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)), (2, 3, 7, 6)),
    "strided, dilated, padded": (
        _images(nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 2), (2, 1), bias=False)),
        (2, 3, 9, 8),
    ),
    "grouped": (_images(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1)), (2, 4, 6, 6)),
    "depthwise": (
        _images(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)),
        (2, 4, 6, 6),
    ),
    "depthwise with a multiplier": (_images(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)), (2, 4, 6, 6)),
    "transposed": (_images(nn.ConvTranspose2d(3, 6, 3, 2, 1, 1), nn.Conv2d(6, 2, 1)), (2, 3, 5, 4)),
    "transposed, grouped, dilated": (_images(nn.ConvTranspose2d(4, 6, 3, 2, 2, 0, 2, True, 2)), (2, 4, 5, 5)),
    "one axis": (_images(nn.Conv1d(3, 6, 5, 2, 2), nn.Conv1d(6, 2, 1)), (2, 3, 11)),
    "three axes": (_images(nn.Conv3d(2, 4, 3, 1, 1), nn.Conv3d(4, 2, 1)), (2, 2, 4, 5, 3)),
    "linear": (_images(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3, bias=False)), (2, 3, 2, 2)),
    "tokens": (Tokens(), (2, 6, 5)),
    "tokens without bias": (Tokens(bias=False), (2, 6, 5)),
}


def half(graph: Graph) -> Plan:
    """Remove the first half of every cell of every group."""
    removed = {}
    for group in graph.groups:
        first = np.argsort(group.cells, kind="stable").reshape(group.cell_count, -1)[
            :, : group.cell_size // 2
        ]
        removed[group.name] = first.ravel().tolist()
    return graph.plan(removed)


def recomputed(
    consumer: Consumer, graph: Graph, replay: Replay, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of a consumer from its matrices and patches, and those recorded, both `[parts, outputs, n]`."""
    index = layout(graph, Sizes(graph, keep_of(graph, replay.plan)), consumer).long()
    matrices = replay.state[consumer.weight].flatten()[index]
    size = tuple(y.shape[2:]) if consumer.geometry else ()
    pieces = list(chunks(consumer, x, size, (y,), share=1.0, seed=0, parts=len(index)))
    made = torch.cat([matrices @ piece.x for piece in pieces], -1)
    if consumer.bias_inside and consumer.bias:
        made = made + replay.state[consumer.bias].reshape(len(index), -1, 1)
    return made, torch.cat([piece.values[0] for piece in pieces], -1)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_matrices_over_patches_give_the_recorded_output(case: str, pruned: bool) -> None:
    model, shape = CASES[case]
    x = torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(0))
    graph = trace(model, torch.zeros(shape))
    replay = Replay(graph, state_of(model), half(graph) if pruned else None)
    found = consumers(graph)
    assert len(found) == sum(isinstance(m, nn.Linear | nn.modules.conv._ConvNd) for m in model.modules())
    _, seen = replay.run(x, watch={n for c in found for n in (c.input, c.output)})
    for consumer in found:
        made, wanted = recomputed(consumer, graph, replay, seen[consumer.input], seen[consumer.output])
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_unit_are_what_its_removal_takes(case: str) -> None:
    model, shape = CASES[case]
    graph = trace(model, torch.zeros(shape))
    dense = Sizes(graph, graph.coupling.keep({}))
    for consumer in consumers(graph):
        if consumer.kind == "depthwise":
            continue
        width = layout(graph, dense, consumer).shape[0] * consumer.width
        for read in consumer.reads:
            group = graph.groups[read.group]
            assert len(read.rows) == group.size
            assert len(np.unique(read.rows)) == read.rows.size
            cut = layout(graph, Sizes(graph, graph.coupling.keep({read.group: [0]})), consumer)
            if group.cell_count == 1:
                assert cut.shape[0] * cut.shape[2] == width - read.rows.shape[1]


def test_a_weight_that_two_ops_read_is_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.linear(self.linear(x)))

    found = consumers(trace(Twice(), torch.zeros(2, 4)))
    assert [consumer.shared for consumer in found] == [True, True, False]


def test_a_product_of_two_activations_is_no_consumer() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y @ y.transpose(1, 2)

    assert [c.weight for c in consumers(trace(Attention(), torch.zeros(2, 5, 4)))] == ["inner.weight"]


def test_bias_of_a_linear_layer_on_three_axes_is_found_behind_the_product() -> None:
    model = Tokens()
    outside = consumers(trace(model, torch.zeros(2, 6, 5)))
    assert [c.bias for c in outside] == ["inner.bias", "outer.bias"]
    inner = consumers(trace(nn.Linear(4, 3), torch.zeros(2, 4)))[0]
    assert (inner.bias, inner.bias_inside) == ("bias", True)


def test_a_share_of_the_patches_is_drawn_from_all_of_them() -> None:
    model, shape = CASES["plain"]
    graph = trace(model, torch.zeros(shape))
    consumer = consumers(graph)[0]
    x, y = torch.randn(2, 3, 7, 6), torch.zeros(2, 6, 5, 4)
    all_of_them = next(iter(chunks(consumer, x, (5, 4), (y,), share=1.0, seed=0))).x[0]
    some = next(iter(chunks(consumer, x, (5, 4), (y,), share=0.25, seed=0)))
    assert some.x.shape == (1, 27, 10)
    assert some.values[0].shape == (1, 6, 10)
    known = {tuple(patch) for patch in all_of_them.T.tolist()}
    assert {tuple(patch) for patch in some.x[0].T.tolist()} < known
    other = next(iter(chunks(consumer, x, (5, 4), share=0.25, seed=1)))
    assert not torch.equal(other.x, some.x)


def test_all_patches_are_taken_where_they_are_cheap() -> None:
    model, shape = CASES["plain"]
    graph = trace(model, torch.zeros(shape))
    assert share_of(consumers(graph)[0], graph, 1024) == 1.0
    assert 0 < share_of(consumers(graph)[0], graph, 10**9) < 1.0


class Spectral(nn.Module):
    """A product of complex numbers between two of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.mix = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((torch.fft.fft(self.into(x), dim=1) @ self.mix).real)


def test_products_of_complex_numbers_are_no_consumers() -> None:
    found = consumers(trace(Spectral().eval(), torch.randn(2, 5, 6)))
    assert [consumer.weight for consumer in found] == ["into.weight", "out.weight"]
