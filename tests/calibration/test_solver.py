import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sned.calibration import kept_error, least_squares
from sned.calibration.solver import LeastSquares, factor, squared_error, times


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1.0
    y = x @ rng.normal(size=(6, 4)) + 0.3 * rng.normal(size=(200, 4)) - 2.0
    return x, y


def moments(x: np.ndarray, y: np.ndarray) -> dict[str, torch.Tensor]:
    n = len(x)
    parts = {"second": x.T @ x / n, "cross": y.T @ x / n, "mean": x.mean(0), "target_mean": y.mean(0)}
    return {name: torch.from_numpy(value) for name, value in parts.items()}


def test_solution_without_bias_is_that_of_lstsq() -> None:
    x, y = data()
    m = moments(x, y)
    fit = least_squares(m["second"], m["cross"], ridge=0.0)
    expected = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(fit.weight.numpy(), expected, atol=1e-8)
    assert not fit.bias.any()


def test_solution_with_bias_is_that_of_lstsq_with_a_constant() -> None:
    x, y = data()
    fit = least_squares(**moments(x, y), ridge=0.0)
    expected = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0].T
    np.testing.assert_allclose(fit.weight.numpy(), expected[:, :6], atol=1e-8)
    np.testing.assert_allclose(fit.bias.numpy(), expected[:, 6], atol=1e-8)


def test_ridge_is_lstsq_with_rows_that_pull_to_the_prior() -> None:
    x, y = data()
    m = moments(x, y)
    prior = np.arange(24.0).reshape(4, 6)
    fit = least_squares(m["second"], m["cross"], prior=torch.from_numpy(prior), ridge=0.1)
    strength = np.sqrt(0.1 * (x**2).mean() * len(x))
    rows = np.r_[x, strength * np.eye(6)]
    expected = np.linalg.lstsq(rows, np.r_[y, strength * prior.T], rcond=None)[0].T
    np.testing.assert_allclose(fit.weight.numpy(), expected, atol=1e-8)


def test_one_solver_serves_several_targets() -> None:
    x, y = data()
    prior = np.arange(24.0).reshape(4, 6)
    solver = LeastSquares(
        torch.from_numpy(x.T @ x / 200),
        mean=torch.from_numpy(x.mean(0)),
        prior=torch.from_numpy(prior),
        ridge=0.1,
    )
    strength = np.sqrt(0.1 * np.cov(x.T, ddof=0).diagonal().mean() * len(x))
    rows = np.r_[x - x.mean(0), strength * np.eye(6)]
    for target in (y, -2 * y + 1):
        fit = solver.fit(torch.from_numpy(target.T @ x / 200), torch.from_numpy(target.mean(0)))
        expected = np.linalg.lstsq(rows, np.r_[target - target.mean(0), strength * prior.T], rcond=None)[0].T
        np.testing.assert_allclose(fit.weight.numpy(), expected, atol=1e-8)
        np.testing.assert_allclose(fit.bias.numpy(), target.mean(0) - expected @ x.mean(0), atol=1e-8)


def test_directions_never_seen_keep_their_old_weights() -> None:
    x, y = data()
    x[:, 3] = 0.0
    m = moments(x, y)
    prior = torch.full((4, 6), 7.0, dtype=torch.float64)
    fit = least_squares(m["second"], m["cross"], prior=prior, ridge=1e-9)
    np.testing.assert_allclose(fit.weight[:, 3].numpy(), 7.0)


def test_the_ridge_grows_until_singular_moments_can_be_solved() -> None:
    x, y = data()
    x[:, 5] = 0.0
    fit = least_squares(**{k: v for k, v in moments(x, y).items() if "mean" not in k}, ridge=0.0)
    assert fit.ridge > 0
    assert torch.isfinite(fit.weight).all()
    residual = y - x @ fit.weight.numpy().T
    best = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose((residual**2).sum(), (best**2).sum(), rtol=1e-6)


def test_moments_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="free of NaN"):
        factor(torch.full((2, 2), torch.nan), 1e-3)


def test_constant_zero_inputs_have_a_solution() -> None:
    fit = least_squares(torch.zeros(3, 3), torch.zeros(2, 3))
    assert torch.equal(fit.weight, torch.zeros(2, 3, dtype=torch.float64))


def test_error_of_a_kept_set_is_that_of_lstsq() -> None:
    x, _ = data()
    weight = np.random.default_rng(1).normal(size=(4, 6))
    y = x @ weight.T
    kept = np.array([0, 2, 5])
    residual = y - x[:, kept] @ np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    expected = (residual**2).sum() / (y**2).sum()
    second = torch.from_numpy(x.T @ x / len(x))
    assert kept_error(second, torch.from_numpy(weight), kept, ridge=0.0) == pytest.approx(expected)
    assert kept_error(second, torch.from_numpy(weight), np.arange(6)) == pytest.approx(0.0, abs=1e-12)
    assert kept_error(second, torch.from_numpy(weight), np.arange(0)) == pytest.approx(1.0)
    assert kept_error(second, torch.zeros(4, 6), kept) == 0.0


def test_squared_error_from_moments_is_that_of_the_data() -> None:
    x, y = data()
    m = moments(x, y)
    weight = np.random.default_rng(2).normal(size=(4, 6))
    expected = ((y - x @ weight.T) ** 2).mean(0)
    energy = torch.from_numpy((y**2).mean(0))
    got = squared_error(m["second"], m["cross"], energy, torch.from_numpy(weight))
    np.testing.assert_allclose(got.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_is_that_of_centred_moments_with_a_ridge(dtype: torch.dtype) -> None:
    x, y = data()
    m = moments(x, y)
    second = m["second"].to(dtype)
    before = second.clone()
    lower, used = factor(second, 0.1, mean=m["mean"])
    centred = np.cov(x.T, ddof=0)
    expected = np.linalg.cholesky(centred + 0.1 * centred.diagonal().mean() * np.eye(6))
    assert used == 0.1
    np.testing.assert_allclose(
        lower.numpy(), expected, rtol=1e-5 if dtype is torch.float32 else 1e-9, atol=1e-6
    )
    assert torch.equal(second, before)


def test_products_with_wide_moments_are_exact_though_they_go_by_blocks() -> None:
    rng = np.random.default_rng(0)
    second, weight, mean = rng.normal(size=(2500, 2500)), rng.normal(size=(2, 3, 2500)), rng.normal(size=2500)
    single = torch.from_numpy(second).float()
    wide = single.numpy().astype(np.float64)
    np.testing.assert_allclose(times(torch.from_numpy(weight), single), weight @ wide, rtol=1e-9, atol=1e-9)
    got = times(torch.from_numpy(weight[0]), single, torch.from_numpy(mean))
    np.testing.assert_allclose(got, weight[0] @ (wide - np.outer(mean, mean)), rtol=1e-9, atol=1e-8)


def bytes_to_solve(width: int) -> int:
    """By how much the memory of this process grows at most while it solves with moments `[width, width]`."""
    one = torch.ones(8, 8) + torch.eye(8)
    LeastSquares(one, mean=one[0], prior=one[:4]).fit(
        one[:4], one[:4, 0]
    )  # code and threads are there from now on
    second = torch.full((width, width), 2.0)
    second.diagonal().add_(1.0)
    cross, mean = torch.ones(4, width), torch.ones(width)
    before = held("VmRSS")
    fit = LeastSquares(second, mean=mean, prior=cross).fit(cross, cross[:, 0])
    assert torch.isfinite(fit.weight).all()
    return held("VmHWM") - before


def held(which: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not say how much memory a process holds")
def test_wide_moments_are_solved_with_one_matrix_beside_them() -> None:
    width = 4000
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        assert alone.submit(bytes_to_solve, width).result() < 1.7 * 8 * width**2
