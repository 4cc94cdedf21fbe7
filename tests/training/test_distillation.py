"""Terms against their formulas; features through the plan against a dense network whose lost units are zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sned
from sned.errors import ModelError, UserError
from sned.graph import Graph, Plan
from sned.progress import SILENT
from sned.training.data import Batch, InMemory, Place
from sned.training.distillation import (
    Distillation,
    attention_loss,
    attention_map,
    distances,
    feature_loss,
    probability_loss,
    relation_loss,
    soft_loss,
)
from sned.training.features import matched, plans_between
from sned.training.handing import captured, output_of, shapes_of
from sned.training.teacher import Cached, Teacher, cached
from tests.training.networks import accuracy, digit_net, digits, same

pytest.importorskip("accelerate")


class Residual(nn.Module):
    """Two stages of residual blocks with a projection between them, all ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage1, self.stage2 = (
            nn.Sequential(Block(8, 8), Block(8, 8)),
            nn.Sequential(Block(8, 12), Block(12, 12)),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.a, self.b = nn.Conv2d(inputs, 10, 3, stride, 1), nn.Conv2d(10, outputs, 3, padding=1)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.b(self.act(self.a(x))) + self.short(x))


class Sequence(nn.Module):
    """Two layers of attention whose modules return their probabilities; no normalisation spans the units."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention()
        self.up, self.down = nn.Linear(16, 20), nn.Linear(20, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)[0]
        return x + self.down(self.up(x).relu())


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv)
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2)), weights


def zeroed(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """The dense network with every slice of the units that go set to zero."""
    silent = copy.deepcopy(model)
    state = dict(silent.named_parameters()) | dict(silent.named_buffers())
    with torch.no_grad():
        for name, units in plan.removed.items():
            for part in graph.group(name).slices:
                if not part.parameter.endswith("running_var"):
                    state[part.parameter].index_fill_(
                        part.axis, torch.from_numpy(part.positions[list(units)].ravel()), 0
                    )
    return silent


def thirds(graph: Graph) -> Plan:
    """A plan that removes units here and there from every group."""
    removed = {}
    for group in graph.groups:
        cells = [
            [int(u) for u in range(group.size) if group.cells[u] == cell] for cell in range(group.cell_count)
        ]
        removed[group.name] = [unit for cell in cells for unit in cell[1:-1:3]]
    return graph.plan(removed)


@pytest.mark.parametrize(("make", "shape"), [(Residual, (2, 3, 8, 8)), (Sequence, (2, 5, 6))])
def test_the_students_features_are_the_teachers_kept_ones(
    make: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """Where what goes is zero, nothing that remains may differ: in every layer, after one plan and after two."""
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    graph = sned.trace(model, x)
    plan = thirds(graph)
    silent = zeroed(model, graph, plan)
    small = sned.apply(silent, plan)
    again = sned.trace(small, x)
    second = thirds(again)
    smaller = sned.apply(small, second)
    silent_twice = zeroed(small, again, second)
    for student, teacher, plans in (
        (small, silent, 1),
        (sned.apply(silent_twice, second), silent_twice, 1),
        (smaller, silent, 2),
    ):
        assert len(plans_between(student, teacher)) == plans
        called = [
            path for path, module in teacher.named_modules() if path and not isinstance(module, nn.ModuleList)
        ]
        shapes = shapes_of(graph.model, graph, called)
        paths = [path for path in called if output_of(graph, path, shapes) is not None]
        matches = matched(student, teacher, lambda: x, paths)
        with torch.no_grad(), captured(student, paths) as mine, captured(teacher, paths) as theirs:
            student(x), teacher(x)
        assert len(matches) > 10
        for match in matches:
            a, b = match.own(mine[match.student]), match.of(theirs[match.teacher])
            assert a.shape == b.shape, match.student
            if plans == 1:
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


class Recurrent(nn.Module):
    """`[n, steps, 8]` to classes by the last states alone; inside, time may come first."""

    def __init__(self, *, both_ways: bool = False, time_first: bool = False) -> None:
        super().__init__()
        self.time_first = time_first
        self.rnn = nn.LSTM(8, 12, batch_first=not time_first, bidirectional=both_ways)
        self.head = nn.Linear(24 if both_ways else 12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (states, _) = self.rnn(x.transpose(0, 1) if self.time_first else x)
        return self.head(torch.cat([*states], -1))


def test_what_a_module_returns_first_is_told_from_what_is_read_of_it() -> None:
    """The sequence of an LSTM both ways has other channels than its last states, which alone are read."""
    torch.manual_seed(0)
    model, x = Recurrent(both_ways=True).eval(), torch.randn(4, 5, 8)
    graph = sned.trace(model, x)
    plan = thirds(graph)
    silent = zeroed(model, graph, plan)
    (match,) = matched(sned.apply(silent, plan), silent, lambda: x)
    assert match.student == "rnn"
    with torch.no_grad():
        mine, theirs = sned.apply(silent, plan).rnn(x), silent.rnn(x)
    assert match.of(theirs).shape == (4, 5, 16)
    torch.testing.assert_close(match.own(mine), match.of(theirs), atol=1e-6, rtol=1e-4)


def test_inputs_are_told_apart_from_time_that_comes_first() -> None:
    """Each term of a network inside which time comes first is that of its twin inside which inputs do."""
    torch.manual_seed(0)
    twins = [Recurrent(time_first=first).eval() for first in (False, True)]
    twins[1].load_state_dict(twins[0].state_dict())
    x = torch.randn(32, 7, 8)
    found = []
    for model in twins:
        small = sned.apply(model, sned.plan(sned.trace(model, x[:2]), sparsity=0.25))
        terms = {"labels": 0, "features": 1.0, "attention": 1.0, "relations": 1.0}
        given = {"teacher": model, "distillation": terms, "epochs": 1, "batch_size": 8, "learning_rate": 1e-9}
        tuned = sned.finetune(small, (x, torch.zeros(32, dtype=torch.long)), **given)
        found.append(tuned.history[0].terms)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[0]["relations"] > 1e-6


@pytest.mark.parametrize("make", ["time first", "several rows an input", "one batch size"])
def test_cached_answers_are_of_the_inputs_asked_for(make: str) -> None:
    class Steps(nn.Module):
        """Logits for every step of `[n, steps, 8]`."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if make == "one batch size":
                return self.head(x.reshape(16, 16, 8))
            return self.head(x.flatten(0, 1) if make == "several rows an input" else x.transpose(0, 1))

    torch.manual_seed(0)
    data = InMemory(torch.randn(32, 16, 8), torch.zeros(32), size=16, place=Place())
    plain = Teacher(Steps().eval())
    kept = cached(plain, data, 16, 2**30, SILENT)
    assert isinstance(kept, Cached) == (make == "time first")
    rows = torch.randperm(32)[:16]
    batch = Batch(data.inputs[rows], None, 16, rows)
    torch.testing.assert_close(kept(batch).output, plain(batch).output)


def test_default_layers_are_the_ends_of_stages_or_blocks_spaced_evenly() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = Residual()
    assert [match.student for match in matched(model, model, lambda: x)] == ["stage1", "stage2"]
    sequence = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(8)])
    names = [match.student for match in matched(sequence, sequence, lambda: torch.randn(2, 5, 8))]
    assert names[-1] == "7"
    assert 2 <= len(names) <= 4


def test_soft_answers_by_hand() -> None:
    student, teacher = torch.randn(7, 4), torch.randn(7, 4)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, 3.0), expected)
    assert float(soft_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_features_and_attention_by_hand() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(feature_loss(a, b), ((a - b) ** 2).sum() / (b**2).sum())
    maps = [(f**2).mean(1).flatten(1) for f in (a, b)]
    maps = [m / m.norm(dim=1, keepdim=True) for m in maps]
    expected = ((maps[0] - maps[1]) ** 2).sum(1).mean()
    torch.testing.assert_close(attention_loss(attention_map(a, 1), attention_map(b, 1)), expected)
    scaled = attention_loss(attention_map(3 * b, 1), attention_map(b, 1))
    assert float(scaled) == pytest.approx(0, abs=1e-9)


def test_relations_by_hand() -> None:
    a, b = torch.randn(5, 3), torch.randn(5, 7)
    expected = torch.cdist(a, a)
    expected = expected / (expected.sum() / 20)
    torch.testing.assert_close(distances(a), expected, atol=1e-4, rtol=1e-3)
    rotated = a @ torch.linalg.qr(torch.randn(3, 3)).Q * 2 + 1
    assert float(relation_loss(rotated, a)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(a, b)) > 1e-3


def test_attention_probabilities_by_hand() -> None:
    p, q = torch.randn(2, 4, 5, 6).softmax(-1), torch.randn(2, 3, 5, 6).softmax(-1)
    a, b = p.mean(1), q.mean(1)
    expected = (b * (b / a).log()).sum(-1).mean()
    torch.testing.assert_close(probability_loss(p, q), expected)


@pytest.fixture(scope="module")
def taught() -> tuple[nn.Module, nn.Module]:
    """A dense network that reads digits, and what half of its units leave."""
    data = digits(0, 1200)
    dense = sned.finetune(digit_net(), data, epochs=8, batch_size=32, learning_rate=0.1).model.eval()
    small = sned.apply(dense, sned.plan(sned.trace(dense, data[0][:2]), sparsity=0.5))
    return dense, small


@pytest.mark.parametrize("term", ["logits", "features", "attention", "relations"])
def test_every_term_alone_brings_the_student_closer_without_labels(
    taught: tuple[nn.Module, nn.Module], term: str
) -> None:
    dense, small = taught
    inputs = digits(0, 600)[0]
    weights = {"labels": 0.0, "logits": 0.0, term: 1.0}
    tuned = sned.finetune(
        small,
        (inputs, torch.zeros(600)),
        teacher=dense,
        distillation=weights,
        epochs=4,
        batch_size=50,
        learning_rate=0.05,
    )
    assert list(tuned.history[0].terms) == [term]
    assert tuned.history[-1].loss < 0.9 * tuned.history[0].loss
    if term == "logits":
        x, y = digits(1200, 1797)
        assert accuracy(tuned.model, x, y) > accuracy(small, x, y) + 0.1


@pytest.mark.parametrize("task", ["tokens", "language", "regression", "ranking"])
def test_answers_of_every_task_are_learnt_where_there_is_one(task: str) -> None:
    """The student's answers come to be the teacher's; what labels mark as no answer is left out."""
    torch.manual_seed(0)
    x = torch.randn(300, 6, 8)
    end: list[nn.Module] = [nn.Flatten()] if task == "ranking" else []
    outputs = 1 if task in ("ranking", "regression") else 5
    teacher, student = (nn.Sequential(nn.Linear(8, outputs), *end) for _ in range(2))
    targets = {
        "tokens": torch.randint(0, 5, (300, 6)),
        "language": torch.randint(0, 5, (300, 6)),
        "regression": torch.randn(300, 6, 1),
        "ranking": torch.randint(0, 3, (300, 6)).float(),
    }[task]
    hidden = -1 if task == "ranking" else -100
    if task != "regression":
        targets[:, 4:] = hidden
        x[:, 4:] = 1e4  # would drown all else
    given = {"distillation": {"labels": 1e-9, "logits": 1.0}, "optimiser": "adamw", "learning_rate": 0.03}
    tuned = sned.finetune(
        student, (x, targets), task=task, teacher=teacher, epochs=20, batch_size=50, **given
    )
    with torch.no_grad():
        mine, theirs, before = (
            model(x)[:, :3].flatten(0, 1 if outputs > 1 else -1) for model in (tuned.model, teacher, student)
        )
    if outputs > 1:
        mine, theirs, before = (values.softmax(-1) for values in (mine, theirs, before))
    if task == "ranking":
        mine, theirs, before = (values.reshape(300, 3).softmax(-1) for values in (mine, theirs, before))
    assert float((mine - theirs).abs().mean()) < 0.2 * float((before - theirs).abs().mean())


def test_a_given_student_learns_from_a_teacher_that_it_was_not_cut_from(
    taught: tuple[nn.Module, nn.Module],
) -> None:
    dense, _ = taught
    tuned = sned.finetune(
        digit_net(seed=5, width=5),
        digits(),
        teacher=dense,
        distillation={"relations": 1.0, "attention": 1.0},
        epochs=2,
    )
    assert set(tuned.history[0].terms) == {"labels", "logits", "attention", "relations"}
    with pytest.raises(ModelError, match=r"must have one shape in student and teacher, got \[\d+, 5, 8, 8\]"):
        sned.finetune(digit_net(width=5), digits(), teacher=dense, distillation={"features": 1.0}, epochs=1)


def test_attention_probabilities_are_compared_where_modules_return_them() -> None:
    torch.manual_seed(0)
    model, x = Sequence(), torch.randn(40, 5, 6)
    small = sned.apply(model, thirds(sned.trace(model, x[:2])))
    weights = {"labels": 0.0, "logits": 0.0, "attention": 1.0}
    tuned = sned.finetune(small, (x, x), teacher=model, distillation=weights, epochs=6, learning_rate=0.01)
    assert set(tuned.history[0].terms) == {"attention", "probabilities"}
    assert tuned.history[-1].terms["probabilities"] < tuned.history[0].terms["probabilities"]


def test_keys_in_a_cache_are_no_attention_probabilities() -> None:
    class CachingAttention(SelfAttention):
        """Returns its keys `[n, heads, steps, 4]` beside its output."""

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(x)[0], self.qkv[1](x).unflatten(-1, (-1, 4)).transpose(1, 2)

    torch.manual_seed(0)
    model, x = Sequence(), torch.randn(40, 5, 6)
    for layer in model.layers:
        layer.attention = CachingAttention()
    small = sned.apply(model, sned.trace(model, x[:2]).plan({"layers.0.up": [1, 5, 7]}))
    weights = {"labels": 0.0, "logits": 0.0, "attention": 1.0, "layers": ("layers.0",)}
    tuned = sned.finetune(small, (x, x), teacher=model, distillation=weights, epochs=1)
    assert set(tuned.history[0].terms) == {"attention"}


def test_cached_answers_are_the_teachers(taught: tuple[nn.Module, nn.Module]) -> None:
    dense, small = taught
    data = InMemory(*digits(0, 150), size=32, place=Place())
    matches = matched(small, dense, lambda: data.inputs)
    plain = Teacher(dense, matches)
    kept = cached(plain, data, 64, 2**30, SILENT)
    assert isinstance(kept, Cached)
    rows = torch.tensor([3, 149, 77])
    batch = Batch(data.inputs[rows], None, 3, rows)
    for mine, theirs in zip(
        (kept(batch).output, *kept(batch).features),
        (plain(batch).output, *plain(batch).features),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert cached(plain, data, 64, 1000, SILENT) is plain
    changing = InMemory(*digits(0, 150), size=32, place=Place(), augment=lambda x: x)
    assert cached(plain, changing, 64, 2**30, SILENT) is plain


def test_a_cache_changes_no_result_but_by_rounding(taught: tuple[nn.Module, nn.Module]) -> None:
    dense, small = taught
    given = {"teacher": dense, "epochs": 2, "learning_rate": 0.02}
    with_cache = sned.finetune(small, digits(), **given)
    without = sned.finetune(small, digits(), distillation={"cache_bytes": 0}, **given)
    assert with_cache.history[-1].loss == pytest.approx(without.history[-1].loss, rel=1e-3)


def test_the_teacher_and_its_mode_are_left_alone(taught: tuple[nn.Module, nn.Module]) -> None:
    dense, small = taught
    teacher = copy.deepcopy(dense).train()
    sned.finetune(small, digits(), teacher=teacher, epochs=1, distillation={"features": 1.0})
    assert teacher.training
    assert same(teacher, dense)
    assert not any(module._forward_hooks for model in (teacher, small) for module in model.modules())


def test_what_does_not_fit_is_told(taught: tuple[nn.Module, nn.Module]) -> None:
    dense, small = taught
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(
        ModelError, match=r"student's output has shape \[128, 10\] and the teacher's \[128, 7\]"
    ):
        sned.finetune(small, digits(), teacher=other, epochs=1)
    with pytest.raises(ModelError, match=r"has no module 'conv9'. Did you mean 'conv"):
        sned.finetune(small, digits(), teacher=dense, distillation={"features": 1.0, "layers": ("conv9",)})
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with pytest.raises(ModelError, match=r"features of shape \[128, 16\] have no positions"):
        sned.finetune(flat, digits(), teacher=flat, epochs=1, distillation={"attention": 1.0})
    with pytest.raises(UserError, match="needs a `teacher`"):
        sned.finetune(small, digits(), distillation={"logits": 1.0})
    with pytest.raises(UserError, match=r"no field 'logit'\. Did you mean 'logits'"):
        sned.finetune(small, digits(), teacher=dense, distillation={"logit": 1.0})
    with pytest.raises(UserError, match="at least one of its terms"):
        Distillation(labels=0, logits=0)
    with pytest.raises(UserError, match="`temperature` must be a finite number above 0"):
        Distillation(temperature=0)
