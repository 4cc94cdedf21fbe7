"""Losses and metrics against plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, ndcg_score, r2_score

from sned.errors import ModelError, UserError
from sned.training.tasks import TASKS, first_output, mean_metric


def value(task: str, outputs: torch.Tensor, targets: torch.Tensor, parts: int = 3) -> float:
    """The metric from several batches."""
    metric = TASKS[task].metric
    pairs = zip(outputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
    return metric.value(torch.stack([metric.sums(a, b) for a, b in pairs]).sum(0))


def test_accuracy_is_that_of_scikit_learn() -> None:
    logits, targets = torch.randn(50, 4), torch.randint(0, 4, (50,))
    assert value("classification", logits, targets) == pytest.approx(
        accuracy_score(targets, logits.argmax(1))
    )


def test_r2_is_that_of_scikit_learn() -> None:
    outputs, targets = torch.randn(50, 1), torch.randn(50) + 3
    assert value("regression", outputs, targets) == pytest.approx(r2_score(targets, outputs[:, 0]), rel=1e-6)


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, relevance = rng.normal(size=(20, 15)), rng.integers(0, 4, (20, 15))
    expected = ndcg_score(2.0**relevance - 1, scores, k=10)
    assert value("ranking", torch.tensor(scores), torch.tensor(relevance)) == pytest.approx(expected)


def test_items_that_are_not_there_change_nothing_in_a_ranking() -> None:
    scores, relevance = torch.randn(6, 8), torch.randint(0, 3, (6, 8))
    wider = (
        torch.cat([scores, torch.full((6, 2), 50.0)], 1),
        torch.cat([relevance, torch.full((6, 2), -1)], 1),
    )
    task = TASKS["ranking"]
    assert torch.allclose(task.loss(scores, relevance, 0), task.loss(*wider, 0))
    assert value("ranking", *wider) == pytest.approx(value("ranking", scores, relevance))
    assert bool(task.loss(*wider, 0).isfinite())


def test_listnet_by_hand() -> None:
    scores, relevance = torch.tensor([[1.0, 0.0]]), torch.tensor([[3, 1]])
    share = torch.tensor([0.75, 0.25])
    expected = -(share * scores[0].softmax(0).log()).sum()
    assert torch.allclose(TASKS["ranking"].loss(scores, relevance, 0), expected)


def test_ignored_tokens_count_neither_in_the_loss_nor_in_the_metric() -> None:
    logits, targets = torch.randn(4, 6, 9), torch.randint(0, 9, (4, 6))
    shortened = targets.clone()
    shortened[:, 4:] = -100
    for task in ("tokens", "language"):
        found = TASKS[task]
        assert torch.allclose(
            found.loss(logits, shortened, 0.1), found.loss(logits[:, :4], targets[:, :4], 0.1)
        )
        assert value(task, logits, shortened) == pytest.approx(value(task, logits[:, :4], targets[:, :4]))


@pytest.mark.parametrize(("task", "outputs", "targets"), [("tokens", 0, 0), ("language", -1, 1)])
def test_targets_of_tokens_may_be_shares_of_classes(task: str, outputs: int, targets: int) -> None:
    logits, shares = torch.randn(4, 6, 9), torch.randn(4, 6, 9).softmax(-1)
    mine, wanted = logits[:, : 6 + outputs], shares[:, targets:]
    expected = -(wanted * mine.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(TASKS[task].loss(logits, shares, 0), expected)
    same = (mine.argmax(-1) == wanted.argmax(-1)).double().mean().item()
    assert value(task, logits, shares, parts=2) == pytest.approx(same)
    assert TASKS[task].answers(logits, shares).shape == (mine.shape[0] * mine.shape[1], 9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_classes_is_that_of_pytorch_and_zero_where_all_are_ignored(smoothing: float) -> None:
    logits, targets = torch.randn(6, 4, 5, 5), torch.randint(0, 4, (6, 5, 5))
    targets[:2] = -100
    shares = torch.randn(6, 4, 5, 5).softmax(1)
    loss = TASKS["classification"].loss
    for wanted in (targets, shares):
        expected = torch.nn.functional.cross_entropy(logits, wanted, label_smoothing=smoothing)
        assert torch.allclose(loss(logits, wanted, smoothing), expected, atol=1e-6)
    logits.requires_grad_()
    nothing = loss(logits, torch.full_like(targets, -100), smoothing)
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert not bool(logits.grad.any())


def test_language_looks_one_token_ahead() -> None:
    tokens = torch.randint(0, 5, (3, 7))
    oracle = torch.nn.functional.one_hot(tokens.roll(-1, 1), 5).float() * 30
    assert value("language", oracle, tokens) == 1.0
    assert float(TASKS["language"].loss(oracle, tokens, 0.0)) < 1e-5


def test_a_users_metric_is_weighed_by_inputs() -> None:
    metric = mean_metric(lambda outputs, targets: float((outputs - targets).mean()), "bias")
    a, b = torch.zeros(4, 1), torch.tensor([[1.0], [1.0], [1.0], [5.0]])
    total = metric.sums(a[:3], b[:3]) + metric.sums(a[3:], b[3:])
    assert metric.value(total) == pytest.approx(float((a - b).mean()))
    assert metric.name == "bias"


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "match"),
    [
        ("classification", (4, 3), torch.zeros(4), "whole numbers of classes"),
        ("classification", (4, 3), torch.zeros(5).long(), r"shape \[4\] for outputs \[4, 3\]"),
        ("classification", (4, 3), torch.tensor([0, 1, 2, 3]), r"from 0 to 2 \(of 3 outputs; .* got 3"),
        ("tokens", (2, 5, 3), torch.full((2, 5), -1), "from 0 to 2 .* got -1"),
        ("tokens", (2, 5, 3), torch.zeros(2, 4).long(), r"shape \[2, 5\]"),
        ("regression", (4, 2), torch.zeros(4), "have the shape of the outputs"),
        ("ranking", (4, 2), torch.zeros(4), r"shape \[lists, items\]"),
    ],
)
def test_targets_that_do_not_fit_are_told(
    task: str, outputs: tuple[int, ...], targets: torch.Tensor, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        TASKS[task].loss(torch.randn(outputs), targets, 0.0)


def test_the_first_tensor_is_found_in_any_nest() -> None:
    assert first_output({"logits": torch.ones(2), "more": None}).sum() == 2
    with pytest.raises(ModelError, match="returns a tensor, got NoneType"):
        first_output(None)
