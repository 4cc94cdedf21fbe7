"""Operations of Core ML programs, against loops over what the specification says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from sned.export.mil_operations import OPERATIONS


@pytest.mark.parametrize(("rows", "places"), [(0, (2, 5)), (0, (4,)), (1, (3,)), (1, (3, 2))])
@pytest.mark.parametrize("deep", [1, 2])
def test_gather_nd_takes_what_stands_at_coordinates(rows: int, places: tuple[int, ...], deep: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 5, 2)).astype(np.float32)
    limits = np.array(x.shape[rows : rows + deep])
    indices = rng.integers(0, 1000, (*places, deep)) % limits
    indices = np.where(rng.random(indices.shape) < 0.3, indices - limits, indices)  # counted from the end
    expected = np.empty((*places, *x.shape[rows + deep :]), np.float32)
    for place in product(*(range(size) for size in places)):
        expected[place] = x[(*place[:rows], *(int(i) for i in indices[place]))]
    given = {"x": torch.from_numpy(x), "indices": torch.from_numpy(indices), "batch_dims": torch.tensor(rows)}
    np.testing.assert_array_equal(OPERATIONS["gather_nd"](given).numpy(), expected)


@pytest.mark.parametrize(("size", "larger"), [(16, 20), (16, 24), (5, 7), (4, 8)])
def test_nearest_upsampling_takes_the_pixel_that_lies_under_each(size: int, larger: int) -> None:
    x = torch.randn(1, 2, size, size)
    scale = larger / size + 6.25e-6  # as the converter writes it
    given = {"x": x, "scale_factor_height": torch.tensor(scale), "scale_factor_width": torch.tensor(scale)}
    under = [place * size // larger for place in range(larger)]
    np.testing.assert_array_equal(
        OPERATIONS["upsample_nearest_neighbor"](given).numpy(), x[:, :, under][:, :, :, under].numpy()
    )


def test_crops_leave_out_the_border() -> None:
    x = torch.randn(2, 3, 7, 9)
    given = {"x": x, "crop_height": torch.tensor([1, 2]), "crop_width": torch.tensor([0, 3])}
    assert torch.equal(OPERATIONS["crop"](given), x[:, :, 1:5, 0:6])
    given = {"x": x, "crop_height": torch.tensor([0, 0]), "crop_width": torch.tensor([0, 0])}
    assert torch.equal(OPERATIONS["crop"](given), x)


def test_pixel_unshuffle_makes_channels_of_blocks() -> None:
    x, factor = torch.randn(1, 2, 4, 6), 2
    expected = np.empty((1, 8, 2, 3), np.float32)
    for channel, row, column in product(range(2), range(4), range(6)):
        place = channel * 4 + row % factor * factor + column % factor
        expected[0, place, row // factor, column // factor] = x[0, channel, row, column]
    given = {"x": x, "downscale_factor": torch.tensor(factor)}
    np.testing.assert_array_equal(OPERATIONS["pixel_unshuffle"](given).numpy(), expected)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("every", [True, False])
def test_an_lstm_goes_through_its_gates_step_by_step(direction: str, every: bool) -> None:
    rng, steps, rows, width, hidden = np.random.default_rng(0), 4, 2, 3, 5
    ways = ["", "_back"] if direction == "bidirectional" else [""]
    sizes = {"weight_ih": (4 * hidden, width), "weight_hh": (4 * hidden, hidden), "bias": (4 * hidden,)}
    weights = {name + way: rng.standard_normal(size) for way in ways for name, size in sizes.items()}
    x = rng.standard_normal((steps, rows, width))
    h, c = rng.standard_normal((2, rows, len(ways) * hidden))
    expected, last_h, last_c = np.empty((steps, rows, len(ways) * hidden)), h.copy(), c.copy()
    for number, way in enumerate(ways):
        order = range(steps) if direction != "reverse" and not way else reversed(range(steps))
        own = slice(number * hidden, (number + 1) * hidden)
        for step, row in product(order, range(rows)):
            gates = (
                weights["weight_ih" + way] @ x[step, row]
                + weights["weight_hh" + way] @ last_h[row, own]
                + weights["bias" + way]
            )
            i, f, o = 1 / (1 + np.exp(-gates[: 3 * hidden].reshape(3, hidden)))
            last_c[row, own] = f * last_c[row, own] + i * np.tanh(gates[3 * hidden :])
            last_h[row, own] = o * np.tanh(last_c[row, own])
            expected[step, row, own] = last_h[row, own]
    given = {**weights, "x": x, "initial_h": h, "initial_c": c, "output_sequence": np.array(every)}
    made = OPERATIONS["lstm"](
        {"direction": direction, **{key: torch.from_numpy(value) for key, value in given.items()}}
    )
    for got, right in zip(made, (expected if every else last_h[None], last_h, last_c), strict=True):
        np.testing.assert_allclose(got.numpy(), right, rtol=1e-12)
