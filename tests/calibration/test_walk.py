import copy

import torch
from torch import Tensor, nn

from sned.calibration.walk import Walk
from sned.graph.replay import Replay
from sned.graph.trace import state_of, trace


class Residual(nn.Module):
    """Writes in place, adds in place, uses a constant and a linear layer on three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu_()
        y = self.inner(x)
        y += x
        return self.head(y.flatten(2).transpose(1, 2)) * torch.arange(4.0, device=x.device)


def walked(walk: Walk, x: Tensor, step: int) -> Tensor:
    live = walk.start(x)
    count = len(walk.graph.ops)
    for start in range(0, count, step):
        walk.advance(live, len(x), start, min(start + step, count))
    assert set(live) == set(walk.graph.outputs)
    return live[walk.graph.outputs[0]]


def test_a_walk_in_steps_ends_where_the_model_does() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(3, 3, 5, 5)
    graph = trace(model, torch.zeros(2, 3, 5, 5))
    plan = graph.plan({group.name: [0] for group in graph.groups})
    with torch.no_grad():
        for step in (1, 3, 100):
            torch.testing.assert_close(walked(Walk(graph, state_of(model)), x, step), model(x))
        expected = Replay(graph, state_of(model), plan).run(x)[0][0]
    torch.testing.assert_close(walked(Walk(graph, state_of(model), plan), x, 2), expected)


def test_a_weight_changed_on_the_way_counts_from_there_on() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(2, 3, 5, 5)
    graph = trace(model, x)
    walk = Walk(graph, state_of(model))
    live = walk.start(x)
    last = max(op.index for op in graph.ops if op.name in ("bmm", "addmm", "mm"))
    walk.advance(live, 2, 0, last)  # the views of the weight lie before
    walk.state["head.weight"] = torch.zeros(4, 6)
    walk.advance(live, 2, last, len(graph.ops))
    expected = (model.head.bias * torch.arange(4.0)).expand(2, 25, 4)
    torch.testing.assert_close(live[graph.outputs[0]], expected)


def test_what_a_plan_leaves_of_a_dense_tensor() -> None:
    model = Residual().eval()
    graph = trace(model, torch.zeros(2, 3, 5, 5))
    plan = graph.plan({graph.groups[0].name: [1, 4]})
    walk = Walk(graph, state_of(model), plan)
    number = next(op.outputs[0] for op in graph.ops if op.name == "convolution")
    assert number is not None
    value = torch.arange(6.0)[None, :, None, None].expand(2, 6, 5, 5)
    assert walk.kept(number, value)[0, :, 0, 0].tolist() == [0.0, 2.0, 3.0, 5.0]


class Remembers(nn.Module):
    """Subtracts the mean of all that it saw, which it reads and writes by views of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("seen", torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.seen.view(-1).lerp_(h.mean(0), 0.5)
        return self.b(h - self.seen.view(-1))


def test_a_walk_writes_into_copies_of_buffers() -> None:
    torch.manual_seed(0)
    model, x = Remembers().eval(), torch.randn(5, 4)
    graph = trace(model, x)
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
        for step in (1, 2, 100):
            torch.testing.assert_close(walked(Walk(graph, state_of(model)), x, step), expected)
    walk = Walk(graph, state_of(model))
    walk.constant(graph.parameters["seen"], len(graph.ops))
    assert torch.equal(model.seen, torch.ones(2, 3))


class Written(nn.Module):
    """Writes through views into copies of parameters: tokens, and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.weight = nn.Parameter(torch.randn(1, 4, 6)), nn.Parameter(torch.randn(6, 5))
        self.embed = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.tokens.expand(len(x), -1, -1).clone()
        h[:, 1:] += self.embed(x)
        weight = self.weight.clone()
        weight[:, 3:] = 0
        return h.relu() @ weight, self.tokens.transpose(1, 2)


def test_a_walk_keeps_what_is_written_into_copies_of_parameters() -> None:
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(5, 3, 3)
    walk = Walk(trace(model, x), state_of(model))
    with torch.no_grad():
        torch.testing.assert_close(walk.finished(walk.start(x), 5, 0), list(model(x)))


def test_inputs_may_lie_in_memory_otherwise_than_the_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(54, 4)).eval()
    x = torch.randn(3, 3, 5, 5)
    walk = Walk(trace(model, x), state_of(model))
    expected = model(x).detach()
    torch.testing.assert_close(walked(walk, x.contiguous(memory_format=torch.channels_last), 2), expected)


class Registers(nn.Module):
    """Learned rows beside those of the input, in layers that see all rows of all inputs as one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(4, 8))
        self.by_input, self.by_row, self.head = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.rows.expand(len(x), -1, -1), x], 1)
        turned = y.transpose(0, 1)
        first = self.by_input(y.flatten(0, 1)).view(*y.shape[:2], -1)
        second = self.by_row(turned.flatten(0, 1)).view(*turned.shape[:2], -1)
        return self.head((first + second.transpose(0, 1)).mean(1))


def test_rows_that_go_are_left_out_of_axes_that_they_share_with_the_batch() -> None:
    torch.manual_seed(0)
    model = Registers().eval()
    graph = trace(model, torch.randn(2, 3, 8))
    plan, x = graph.plan({"rows": [1, 2]}), torch.randn(5, 3, 8)
    dense, pruned = Walk(graph, state_of(model)), Walk(graph, state_of(model), plan)
    whole, cut = dense.start(x), pruned.start(x)
    rows = {"by_input": (5, 7, 6), "by_row": (7, 5, 6)}
    for op in graph.ops:
        dense.advance(whole, 5, op.index, op.index + 1)
        pruned.advance(cut, 5, op.index, op.index + 1)
        if op.name == "addmm" and op.module in rows:
            number, shape = op.outputs[0], rows.pop(op.module)
            assert number is not None
            kept = pruned.kept(number, whole[number])
            torch.testing.assert_close(kept, cut[number])
            stay = (
                whole[number].view(shape).narrow(shape.index(7), 3, 4)
            )  # the last learned row, and the input's
            last = cut[number].view([5 if size == 7 else size for size in shape])
            torch.testing.assert_close(last.narrow(shape.index(7), 1, 4), stay)
    assert not rows
