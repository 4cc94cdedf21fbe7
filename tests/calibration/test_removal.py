import importlib
import itertools

import numpy as np
import pytest
import torch

from sned.calibration import Problem, greedy_removal

removal_module = importlib.import_module("sned.calibration.removal")


def problem(
    seed: int = 0, units: int = 4, k: int = 2, fixed: int = 1
) -> tuple[Problem, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    width = units * k + fixed
    x = rng.normal(size=(300, width)) @ rng.normal(size=(width, width))
    weight = rng.normal(size=(3, width))
    rows = rng.permutation(width)[: units * k].reshape(units, k)
    return Problem(torch.from_numpy(x.T @ x / len(x)), torch.from_numpy(weight), rows), x, weight


def lost(x: np.ndarray, weight: np.ndarray, gone: np.ndarray) -> float:
    """Relative error of the best repair, by least squares on the data."""
    y = x @ weight.T
    kept = np.setdiff1d(np.arange(x.shape[1]), gone)
    if not len(kept):
        return 1.0
    residual = y - x[:, kept] @ np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return float((residual**2).sum() / (y**2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_every_step_is_the_best_single_one_and_its_error_that_of_lstsq(seed: int) -> None:
    given, x, weight = problem(seed)
    removal = greedy_removal([given], ridge=0.0)
    gone: list[int] = []
    for step, unit in enumerate(removal.order.tolist()):
        options = {u: lost(x, weight, given.rows[[*gone, u]].ravel()) for u in range(4) if u not in gone}
        assert unit == min(options, key=lambda u: options[u])
        gone.append(unit)
        assert removal.error[step + 1] == pytest.approx(options[unit], rel=1e-6)
    assert removal.error[0] == 0.0
    assert (np.diff(removal.error) >= 0).all()


def test_greedy_is_near_the_best_of_all_pairs() -> None:
    given, x, weight = problem(3)
    best = min(
        lost(x, weight, given.rows[list(pair)].ravel()) for pair in itertools.combinations(range(4), 2)
    )
    assert best <= greedy_removal([given], ridge=0.0).error[2] * (1 + 1e-9) <= 3 * best


def test_a_copy_of_another_unit_goes_first_at_no_cost() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    x[:, 2] = x[:, 0]
    given = Problem(
        torch.from_numpy(x.T @ x), torch.from_numpy(rng.normal(size=(3, 4)) * 5), np.arange(4)[:, None]
    )
    removal = greedy_removal([given], ridge=1e-9)
    assert removal.order[0] in (0, 2)
    assert removal.error[1] < 1e-6


def test_problems_that_read_the_same_units_add_up() -> None:
    first, x, w = problem(0)
    second, z, v = problem(1)
    removal = greedy_removal(
        [first, Problem(second.second, second.weight, second.rows, share=2.0)], ridge=0.0
    )
    unit = int(removal.order[0])
    costs = [lost(x, w, first.rows[u]) + 2 * lost(z, v, second.rows[u]) for u in range(4)]
    assert unit == int(np.argmin(costs))
    assert removal.error[1] == pytest.approx(costs[unit], rel=1e-6)


def test_cells_lose_equally_many_in_every_round() -> None:
    given, *_ = problem(2, units=6, k=1)
    cells = np.array([0, 0, 0, 1, 1, 1])
    order = greedy_removal([given], cells).order
    for rounds in (1, 2, 3):
        assert np.bincount(cells[order[: 2 * rounds]]).tolist() == [rounds, rounds]


def test_many_units_are_removed_with_the_same_errors_as_one_by_one() -> None:
    given, x, weight = problem(5, units=20, k=3, fixed=2)
    removal = greedy_removal([given], ridge=0.0)
    assert sorted(removal.order.tolist()) == list(range(20))
    for step in (1, 7, 13, 20):
        gone = given.rows[removal.order[:step]].ravel()
        assert removal.error[step] == pytest.approx(lost(x, weight, gone), rel=1e-5)


def test_units_that_go_in_batches_cost_what_lstsq_says_and_not_much_more_than_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, x, weight = problem(6, units=60, k=2, fixed=3)
    single = greedy_removal([given], ridge=0.0)
    monkeypatch.setattr(removal_module, "_ROUNDS", 8)
    batched = greedy_removal([given], ridge=0.0)
    assert sorted(batched.order.tolist()) == list(range(60))
    for step in (3, 7, 20, 41, 58):
        gone = given.rows[batched.order[:step]].ravel()
        assert batched.error[step] == pytest.approx(lost(x, weight, gone), rel=1e-4)
        assert batched.error[step] <= 1.5 * single.error[step]


def test_wide_problems_in_single_precision_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given, *_ = problem(7, units=60, k=3, fixed=3)
    double = greedy_removal([given])
    monkeypatch.setattr(removal_module, "_WIDE", 1)
    single = greedy_removal([given])
    np.testing.assert_allclose(single.error, double.error, rtol=1e-3)
    assert (single.order == double.order).mean() > 0.9


def test_a_batch_never_takes_both_of_two_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 32))
    x[:, 16:] = x[:, :16]
    given = Problem(
        torch.from_numpy(x.T @ x), torch.from_numpy(rng.normal(size=(8, 32))), np.arange(32)[:, None]
    )
    monkeypatch.setattr(removal_module, "_ROUNDS", 2)
    removal = greedy_removal([given], ridge=1e-9)
    assert sorted(removal.order[:16] % 16) == list(range(16))
    assert removal.error[16] < 1e-6


def test_batches_keep_cells_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    given, *_ = problem(2, units=24, k=1)
    cells = np.arange(24) % 3
    monkeypatch.setattr(removal_module, "_ROUNDS", 2)
    order = greedy_removal([given], cells).order
    for rounds in range(1, 9):
        assert np.bincount(cells[order[: 3 * rounds]]).tolist() == [rounds] * 3


def test_outputs_of_no_energy_cost_nothing() -> None:
    given, *_ = problem(0)
    removal = greedy_removal([Problem(given.second, torch.zeros_like(given.weight), given.rows)])
    assert removal.error.tolist() == [0.0] * 5
