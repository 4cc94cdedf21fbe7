"""Budgets: what is accepted, what it resolves to, and what is refused with which words."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sned.devices import Budget
from sned.devices.budget import AMOUNTS
from sned.errors import BudgetError, UserError

DENSE = {"latency_ms": 8.0, "macs": 4e9, "parameters": 1e6, "size_bytes": 4e6}


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (2, 2.0),
        (2.5, 2.5),
        ("2", 2.0),
        ("1e-1", 0.1),
        ("50%", 4.0),
        (" 67.5 % ", 5.4),
        ("2x", 4.0),
        ("4×", 2.0),
    ],
)
def test_amounts_are_absolute_or_what_remains(asked: float | str, limit: float) -> None:
    assert Budget(latency_ms=asked).limits(DENSE) == {"latency_ms": pytest.approx(limit)}


def test_every_amount_that_is_given_is_a_limit() -> None:
    limits = Budget(macs="25%", parameters=5e5, size_bytes="2x").limits(DENSE)
    assert limits == {"macs": 1e9, "parameters": 5e5, "size_bytes": 2e6}


@given(st.floats(1e-6, 1.0), st.floats(1e-3, 1e12))
def test_a_share_of_the_dense_cost(share: float, dense: float) -> None:
    limit = Budget(macs=f"{share * 100!r}%").limits({"macs": dense})["macs"]
    assert limit == pytest.approx(share * dense, rel=1e-9)


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), 10**400, True, "fast", "", "0%", "150%", "0x", "-2x", [1]]
)
def test_impossible_amounts(name: str, value: object) -> None:
    with pytest.raises(BudgetError, match=rf"`{name}` must be a number above 0, or say what remains"):
        Budget(**{name: value})


@pytest.mark.parametrize("name", ["sparsity", "max_loss"])
@pytest.mark.parametrize("value", [1, 1.2, -0.1, "half", "30%", True])
def test_impossible_fractions(name: str, value: object) -> None:
    with pytest.raises(BudgetError, match=rf"`{name}` must be in \[0, 1\): .*; got "):
        Budget(**{name: value})


@pytest.mark.parametrize("name", ["batch", "threads"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "two", True])
def test_impossible_counts(name: str, value: object) -> None:
    with pytest.raises(BudgetError, match=rf"`{name}` must be a whole number of at least 1, got "):
        Budget(macs="50%", **{name: value})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "A budget must ask for something"),
        ({"device": "host"}, "A budget must ask for something"),
        ({"sparsity": 0.5, "macs": "50%"}, "got sparsity=0.5 and macs=50%. Give one or the other"),
        ({"sparsity": 0.5, "max_loss": 0.01}, "Give one or the other"),
        ({"latency": 3}, "A budget has no field `latency`. Did you mean 'latency_ms'?"),
        (
            {"macs": 1, "runtime": "tensorrt"},
            "`runtime` must be 'onnxruntime', .* or 'openvino', got 'tensorrt'",
        ),
        ({"macs": 1, "dtype": "int4"}, "`dtype` must be 'float32', 'float16' or 'int8', got 'int4'"),
        ({"macs": 1, "device": 3}, "`device` must be .*got 3"),
    ],
)
def test_contradictions_and_typos(fields: dict[str, object], text: str) -> None:
    with pytest.raises(BudgetError, match=text):
        Budget(**fields)


def test_it_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError):
        Budget()
    assert BudgetError.exit_code == 2


def test_an_amount_that_no_model_tells() -> None:
    with pytest.raises(
        BudgetError, match=r"`energy_mj` cannot be budgeted on 'host' yet.*`latency_ms`, `size_bytes`"
    ):
        Budget(energy_mj=3).limits({**DENSE, "energy_mj": float("nan")})


def test_fractions_are_taken_from_a_shell() -> None:
    assert Budget(sparsity="0.5").sparsity == 0.5
    assert Budget(max_loss=0).max_loss == 0
    assert Budget(macs="50%", threads="2").threads == 2


def test_it_is_frozen_and_says_what_it_asks() -> None:
    budget = Budget(latency_ms="2x", macs=2e9, max_loss=0.01)
    assert str(budget) == "latency_ms=50%, macs=2e+09, max_loss=0.01 on host"
    with pytest.raises(ValueError, match="frozen"):
        budget.batch = 2  # type: ignore[misc]


def test_numbers_of_numpy_and_paths_are_taken() -> None:
    budget = Budget(
        macs=np.int64(1000), latency_ms=np.float32(0.5), max_loss=np.float64(0.25), threads=np.int64(2),
        device=[Path("my-board.toml"), "pixel-9"],
    )  # fmt: skip
    assert budget.amounts == {"latency_ms": 0.5, "macs": 1000.0}
    assert (budget.max_loss, budget.threads, budget.device) == (0.25, 2, "my-board.toml,pixel-9")
    assert Budget.model_validate_json(budget.model_dump_json()) == budget
    assert Budget(macs=1, device=Path("my-board.toml")).device == "my-board.toml"


@pytest.mark.parametrize("device", [None, [], 3, ["pixel-9", 3]])
def test_devices_that_are_no_names(device: object) -> None:
    with pytest.raises(BudgetError, match="`device` must be the name of a device or a set, or the path"):
        Budget(macs=1, device=device)


def test_an_amount_without_a_name() -> None:
    with pytest.raises(
        BudgetError, match=r"A budget must say what it limits, got '50%' alone. Name it, such as"
    ):
        Budget("50%")


def test_there_and_back_through_plain_data() -> None:
    budget = Budget(latency_ms="33%", sparsity=None, threads=2)
    assert Budget(**budget.model_dump()) == budget


def test_on_a_set_every_device_has_a_limit_of_its_own() -> None:
    dense = {"latency_ms": 9.0, "latency_ms@a": 4.0, "latency_ms@b": 9.0, "macs": 100.0, "macs@a": 100.0}
    relative = Budget(latency_ms="50%", macs="50%", device="a,b").limits(dense)
    assert relative == {"latency_ms@a": 2.0, "latency_ms@b": 4.5, "macs": 50.0}
    assert Budget(latency_ms=3).limits(dense) == {"latency_ms@a": 3.0, "latency_ms@b": 3.0}
