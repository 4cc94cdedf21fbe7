"""Thinned weights against brute force and against plain magnitude."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from sned.calibration.patterns import Pattern
from sned.calibration.thinning import _fitted, held, thinned

SINGLE = Pattern.parse("weight")


def problem(outputs: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    x = mix @ torch.randn(width, 4000, generator=generator, dtype=torch.float64)
    return torch.randn(outputs, width, generator=generator, dtype=torch.float64), x @ x.T / 4000


def error(weight: torch.Tensor, thin: torch.Tensor, second: torch.Tensor) -> float:
    gone = weight - thin
    return float((gone @ second * gone).sum())


def best(weight: torch.Tensor, second: torch.Tensor, keep: tuple[int, ...]) -> torch.Tensor:
    """The least-squares weights on a support, from the normal equations."""
    found = torch.zeros_like(weight)
    at = list(keep)
    found[:, at] = torch.linalg.solve(second[at][:, at], (weight @ second)[:, at].T).T
    return found


def test_one_row_comes_close_to_the_best_of_all_supports() -> None:
    ratios = []
    for seed in range(8):
        weight, second = problem(1, 8, seed)
        least = min(error(weight, best(weight, second, keep), second) for keep in combinations(range(8), 4))
        thin = thinned(weight, second, 1, SINGLE, 0.5, ridge=0.0)
        assert int((thin != 0).sum()) == 4
        ratios.append(error(weight, thin, second) / least)
    assert min(ratios) == pytest.approx(1.0, abs=1e-3)
    assert sorted(ratios)[4] < 2.0


def test_the_fit_on_a_support_solves_the_normal_equations() -> None:
    weight, second = problem(5, 12)
    stay = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    found = _fitted(weight, second, stay, weight * stay)
    for row in range(5):
        keep = tuple(stay[row].nonzero()[:, 0].tolist())
        assert torch.allclose(found[row : row + 1], best(weight[row : row + 1], second, keep), atol=1e-3)


def test_the_first_to_leave_is_the_one_whose_best_repair_is_closest() -> None:
    weight, second = problem(1, 6)
    thin = thinned(weight, second, 1, Pattern.parse("weight"), 5 / 6, ridge=0.0)
    errors = [
        error(weight, best(weight, second, tuple(i for i in range(6) if i != j)), second) for j in range(6)
    ]
    assert (thin == 0).flatten().nonzero().flatten().tolist() == [errors.index(min(errors))]


@pytest.mark.parametrize("name", ["weight", "2:4", "1x4", "2x2"])
def test_repair_beats_plain_magnitude(name: str) -> None:
    weight, second = problem(8, 24)
    pattern = Pattern.parse(name)
    thin = thinned(weight, second, 3, pattern, 0.5)
    plain = weight * pattern.choose(weight.square().reshape(8, 8, 3), 0.5).reshape(8, 24)
    assert int((thin == 0).sum()) == int((plain == 0).sum())
    assert error(weight, thin, second) < 0.7 * error(weight, plain, second)


def test_constant_and_silent_inputs_do_no_harm() -> None:
    weight, second = problem(4, 8)
    second[3], second[:, 3] = 0.0, 0.0
    thin = thinned(weight, second, 1, SINGLE, 0.5)
    assert bool(thin.isfinite().all())
    assert not bool(thin[:, 3].any())


@pytest.mark.parametrize("seed", range(5))
def test_inputs_that_never_change_leave_rounding_which_does_no_harm(seed: int) -> None:
    weight, _ = problem(4, 32, seed)
    x = torch.randn(32, generator=torch.Generator().manual_seed(seed)).double()
    second = (torch.outer(x, x).float().double() - torch.outer(x, x)) * 0.3
    assert bool(torch.linalg.eigvalsh(second).min() < 0)
    thin = thinned(weight, second, 1, SINGLE, 0.5)
    assert bool(thin.isfinite().all())
    assert int((thin == 0).sum()) == 64
    stay = thin != 0
    assert bool(held(stay, weight, second).isfinite().all())
    assert float((held(stay, weight, second) - weight)[stay].abs().max()) < 0.2 * float(weight.abs().max())


def test_where_nothing_but_zeros_enters_the_largest_weights_stay() -> None:
    weight, _ = problem(1, 9)
    thin = thinned(weight, torch.zeros(9, 9, dtype=torch.float64), 1, SINGLE, 4 / 9)
    largest = weight.abs() >= weight.abs().topk(4).values[0, -1]
    assert torch.equal(thin, weight * largest)
