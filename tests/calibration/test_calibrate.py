import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from sned.calibration import calibrate, synthetic_batches
from sned.calibration.calibrate import batch_size
from sned.errors import CalibrationError, ModelError
from sned.graph.trace import state_of, trace

calibrate_module = importlib.import_module("sned.calibration.calibrate")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.left(a) + self.right(b)).relu())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.inner(self.table(ids)).relu() * mask[..., None]
        return self.head(x.mean(1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return images().eval()


X = torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_moments_are_those_of_unfolded_patches(network: nn.Module) -> None:
    graph = trace(network, X[:2])
    found = calibrate(graph, state_of(network), [X[:50], X[50:]])
    assert (found.count, found.synthetic) == (70, False)
    with torch.no_grad():
        inputs = {"0.weight": (X, 2, 1), "2.weight": (network[:2](X), 1, 0)}
    for consumer in found.consumers[:2]:
        x, stride, padding = inputs[consumer.weight]
        patches = functional.unfold(x, 3, stride=stride, padding=padding).transpose(0, 1).flatten(1).double()
        moment = found.moments[consumer.op]
        assert moment.second is not None
        assert moment.count == patches.shape[1]
        torch.testing.assert_close(
            moment.second[0], patches @ patches.T / patches.shape[1], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(moment.mean[0], patches.mean(1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(moment.diagonal[0], patches.square().mean(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("limits", [{"moments.PRECISE": 0, "moments.BLOCK": 5}, {"spool.IN_MEMORY": 0}])
def test_moments_of_wide_layers_and_those_in_files_are_the_same(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    graph, state, batches = trace(network, X[:2]), state_of(network), [X[:30], X[30:]]
    held = calibrate(graph, state, batches).moments
    for name, value in limits.items():
        monkeypatch.setattr(f"sned.calibration.{name}", value)
    found = calibrate(graph, state, batches).moments
    assert list(found) == list(held)
    for op, moment in held.items():
        assert found[op].count == moment.count
        for name in ("second", "diagonal", "mean"):
            torch.testing.assert_close(
                getattr(found[op], name), getattr(moment, name), check_dtype=False, atol=1e-5, rtol=1e-5
            )


def test_inputs_and_dense_outputs_are_kept_in_order(network: nn.Module) -> None:
    graph = trace(network, X[:2])
    found = calibrate(graph, state_of(network), iter([X[:33], X[33:]]), limit=60)
    assert found.count == 60
    with torch.no_grad():
        torch.testing.assert_close(found.outputs()[0], network(X[:60]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.outputs(20, 31)[0], network(X[20:31]), atol=1e-5, rtol=1e-4)
    assert torch.equal(torch.cat([b[0] for b in found.batches(10, 55)]), X[10:55])
    assert "60 calibration inputs" in found.note


def test_further_inputs_are_kept_and_nothing_is_learnt_from_them(network: nn.Module) -> None:
    graph, state = trace(network, X[:2]), state_of(network)
    alone = calibrate(graph, state, [X[:32]])
    found = calibrate(graph, state, [X[:20], X[20:50], X[50:]], limit=32, further=10)
    assert (found.count, found.further, alone.further) == (32, 10, 0)
    assert torch.equal(torch.cat([b[0] for b in found.batches(0, 42)]), X[:42])
    assert len(found.outputs()[0]) == sum(len(b[0]) for b in found.batches()) == 32
    for op, moment in alone.moments.items():
        assert found.moments[op].count == moment.count
        torch.testing.assert_close(found.moments[op].second, moment.second)


def test_further_inputs_take_no_more_than_their_share_of_memory(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_module, "FURTHER_BYTES", 5 * X[0].nbytes)
    found = calibrate(trace(network, X[:2]), state_of(network), [X], limit=16, further=30)
    assert (found.count, found.further) == (16, 5)


def test_a_larger_network_learns_from_fewer_inputs(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, state = trace(network, X[:2]), state_of(network)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(X[:1])
    macs = counter.get_total_flops() // 2
    monkeypatch.setattr(calibrate_module, "FEWEST", 3)
    monkeypatch.setattr(calibrate_module, "MOST", 50)
    for affordable, count in ((1, 3), (20, 20), (90, 50)):
        monkeypatch.setattr(calibrate_module, "MACS", affordable * macs + 1)
        assert calibrate(graph, state, [X]).count == count


def test_consumers_of_the_same_patches_share_one_moment() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum() + self.b(x).sum() + self.c(x).sum()

    model = Branches()
    graph = trace(model, X[:2])
    moments = calibrate(graph, state_of(model), [X[:8]]).moments
    a, b, c = (moments[op] for op in sorted(moments))
    assert a.second is b.second
    assert c is not a


@pytest.mark.parametrize("kind", ["numpy", "float64", "list of one", "tuple of one", "generator"])
def test_ways_to_give_one_tensor(network: nn.Module, kind: str) -> None:
    graph = trace(network, X[:2])
    ways = {
        "numpy": [X.numpy()],
        "float64": [X.double()],
        "list of one": [[X[:40]], [X[40:]]],
        "tuple of one": [(X,)],
        "generator": (X[i : i + 10] for i in range(0, 70, 10)),
    }
    found = calibrate(graph, state_of(network), ways[kind])
    torch.testing.assert_close(torch.cat([b[0] for b in found.batches()]), X)


def test_batches_may_come_one_over_the_other_in_the_same_memory(network: nn.Module) -> None:
    held = torch.empty(10, 3, 8, 8)

    def batches() -> Iterator[Tensor]:
        for rows in X.split(10):
            yield held.copy_(rows)

    found = calibrate(trace(network, X[:2]), state_of(network), batches())
    torch.testing.assert_close(torch.cat([x for (x,) in found.batches(0, len(X))]), X)


def test_two_inputs_and_keyword_inputs() -> None:
    model = Pair().eval()
    a, b = torch.randn(9, 4), torch.randn(9, 3)
    found = calibrate(trace(model, (a, b)), state_of(model), [(a, b), (a[:5], b[:5])])
    assert found.count == 14
    named = calibrate(trace(model, {"a": a, "b": b}), state_of(model), [{"a": a, "b": b.numpy()}])
    assert [set(batch) for batch in named.batches()] == [{"a", "b"}]


def test_integer_inputs_stay_integers() -> None:
    model = Tokens().eval()
    example = {"ids": torch.randint(0, 11, (2, 5)), "mask": torch.ones(2, 5)}
    graph = trace(model, example)
    batch = {"ids": torch.randint(0, 11, (7, 5), dtype=torch.int32), "mask": torch.ones(7, 5)}
    found = calibrate(graph, state_of(model), [batch])
    assert next(iter(found.batches()))["ids"].dtype == torch.int64
    with pytest.raises(CalibrationError, match=r"must be int64 like the example, got float32 in batch 0"):
        calibrate(graph, state_of(model), [{"ids": torch.rand(7, 5), "mask": torch.ones(7, 5)}])


def test_random_inputs_stand_in_where_none_are_given(network: nn.Module) -> None:
    graph = trace(network, X[:2])
    found = calibrate(graph, state_of(network), None, limit=40)
    assert (found.count, found.synthetic) == (40, True)
    assert "random inputs" in found.note
    again = calibrate(graph, state_of(network), None, limit=40)
    assert torch.equal(found.outputs()[0], again.outputs()[0])
    shapes = [batch[0].shape[0] for batch in synthetic_batches(graph.example, 70)]
    assert shapes == [32, 32, 6]


def test_a_large_set_is_spooled_and_gives_the_same(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = trace(network, X[:2])
    expected = calibrate(graph, state_of(network), [X])
    monkeypatch.setattr("sned.calibration.store.IN_MEMORY", 1000)
    found = calibrate(graph, state_of(network), [X[:30], X[30:]], workdir=tmp_path)
    assert any(tmp_path.rglob("rows"))
    assert torch.equal(torch.cat([b[0] for b in found.batches()]), X)
    torch.testing.assert_close(found.outputs()[0], expected.outputs()[0])
    del found
    assert not any(tmp_path.rglob("rows"))


def test_a_model_of_one_batch_size_takes_whole_batches_only() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.head = nn.Linear(4 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).reshape(4, 4 * 64))

    model = Fixed().eval()
    graph = trace(model, X[:4])
    assert not graph.batched
    assert calibrate(graph, state_of(model), [X[:8]]).count == 8
    assert calibrate(graph, state_of(model), None, limit=8).count == 8
    assert calibrate(graph, state_of(model), None, limit=10).count == 8
    assert calibrate(graph, state_of(model), [X[:12]], limit=10).count == 8
    assert calibrate(graph, state_of(model), None, limit=3).count == 4
    with pytest.raises(CalibrationError, match="batch size 4 only"):
        calibrate(graph, state_of(model), [X[:6]])


class Squeezed(nn.Module):
    """Drops every axis of size 1 ahead of its head: of a row alone also that of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 8), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().squeeze())


@pytest.mark.parametrize("count", [1, 65])
def test_a_row_alone_keeps_its_axis_where_the_network_drops_all_of_size_one(count: int) -> None:
    model = Squeezed().eval()
    found = calibrate(trace(model, X[:1]), state_of(model), [X[:count]])
    assert [len(x) for x in found.batches()][-1] == 1
    with torch.no_grad():
        wanted = model(X)[:count]
    torch.testing.assert_close(found.outputs()[0], wanted)


def test_batches_shrink_with_the_activations() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 3, 1))
    assert batch_size(trace(wide, torch.zeros(2, 3, 256, 256))) == 1
    assert batch_size(trace(wide, torch.zeros(2, 3, 128, 128))) == 4
    assert batch_size(trace(wide, torch.zeros(2, 3, 8, 8))) == 64


def labelled() -> Iterator[tuple[Tensor, Tensor]]:
    yield X[:4], torch.zeros(4, dtype=torch.int64)


ERRORS = {
    "empty": ([], r"at least one batch .* got none"),
    "labels": (labelled(), r"looks like \(inputs, labels\): sned needs no labels: pass the inputs alone"),
    "labels in a list": ([[X[:4], [1, 2, 3, 4]]], r"looks like \(inputs, labels\)"),
    "a dict": ([{"x": X}], r"is \{'x': float32\[70, 3, 8, 8\]\}.*nested like"),
    "a bare tensor": (X, r"must be an iterable over batches, got float32\[70, 3, 8, 8\]"),
    "wrong shape": (
        [X[:, :, :4]],
        r"shape \[any, 3, 8, 8\] like the example, got \[70, 3, 4, 8\] in batch 0",
    ),
    "one image": ([X, X[0]], r"got \[3, 8, 8\] in batch 1\. .* a single input needs one too"),
    "wrong dtype": ([X.to(torch.uint8)], r"must be float32 like the example, got uint8 in batch 0"),
    "NaN": ([X, X * torch.nan], r"must be finite, but batch 1 holds NaN"),
    "text": (["cat.png"], r"tensors or NumPy arrays, got str in batch 0"),
}


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None, scale: float, table: Tensor) -> Tensor:
        return self.head((x if mask is None else x * mask) * scale + table.exp())


OPTIONAL = {"x": torch.ones(3, 4), "mask": None, "scale": 2.0, "table": torch.full((1, 4), -torch.inf)}


def test_keywords_in_any_order_and_fixed_inputs_with_infinity_are_taken() -> None:
    model = Optional().eval()
    graph = trace(model, OPTIONAL)
    found = calibrate(graph, state_of(model), [dict(reversed(OPTIONAL.items()))])
    assert torch.equal(found.moments[found.consumers[0].op].mean[0], torch.full((4,), 2.0))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"mask": torch.zeros(4)}, r"same in every calibration batch, None, but batch 1 has float32\[4\]"),
        (
            {"scale": 7.0},
            r"same in every calibration batch, 2\.0, but batch 1 has 7\.0\. Trace with an example",
        ),
        ({"table": torch.full((1, 4), torch.nan)}, "holds NaN"),
    ],
)
def test_values_that_differ_from_the_example_are_refused(changed: dict[str, object], text: str) -> None:
    model = Optional().eval()
    with pytest.raises(CalibrationError, match=text):
        calibrate(trace(model, OPTIONAL), state_of(model), [OPTIONAL, {**OPTIONAL, **changed}])


def test_each_reader_of_what_is_written_in_between_has_its_own_moment() -> None:
    class Rewritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (
                nn.Linear(4, 4),
                nn.Linear(4, 2),
                nn.Linear(4, 2),
                nn.Linear(4, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = self.b(y)
            y.mul_(3.0)
            z = z + self.c(y)
            y.mul_(0.5)
            return z + self.d(y)

    model, x = Rewritten().eval(), X[:8, 0, 0, :4]
    found = calibrate(trace(model, x), state_of(model), [x])
    _, b, c, d = (found.moments[consumer.op].mean for consumer in found.consumers)
    torch.testing.assert_close(c, 3 * b)
    torch.testing.assert_close(d, 1.5 * b)
    assert b.any()


@pytest.mark.parametrize("case", ERRORS)
def test_what_a_model_cannot_take_is_refused(network: nn.Module, case: str) -> None:
    batches, text = ERRORS[case]
    if case == "labels":
        batches = labelled()
    with pytest.raises(CalibrationError, match=text):
        calibrate(trace(network, X[:2]), state_of(network), batches)


def test_batches_of_unequal_length_and_a_limit_of_nothing_are_refused() -> None:
    model = Pair().eval()
    graph = trace(model, (torch.zeros(2, 4), torch.zeros(2, 3)))
    with pytest.raises(CalibrationError, match=r"equally many inputs, got \[3, 4\] in batch 0"):
        calibrate(graph, state_of(model), [(torch.zeros(3, 4), torch.zeros(4, 3))])
    with pytest.raises(CalibrationError, match="at least 1 input, got 0"):
        calibrate(graph, state_of(model), None, limit=0)


def test_a_network_that_answers_nan_is_refused(network: nn.Module) -> None:
    graph = trace(network, X[:2])
    broken = {name: t * np.nan for name, t in state_of(network).items()}
    with pytest.raises(ModelError, match="answers NaN"):
        calibrate(graph, broken, [X])


def test_random_tensors_without_a_batch_axis_are_the_same_throughout() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, t: Tensor, x: Tensor, table: Tensor) -> Tensor:
            return self.head(self.wide(x * t + table.mean(0)).relu())

    model = Scaled().eval()
    graph = trace(model, (torch.tensor(2.0), torch.zeros(2, 4), torch.zeros(5, 4)))
    found = calibrate(graph, state_of(model), None, limit=70)
    (t, x, table), *others = found.batches()
    assert len(others) > 0
    assert all(torch.equal(other[0], t) and torch.equal(other[2], table) for other in others)
    assert not torch.equal(others[0][1][:6], x[:6])
