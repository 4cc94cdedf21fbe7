"""Integers that remember where they came from."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sned.graph.formulas import OPENED, Attribute, Sized, TensorAxis
from sned.graph.provenance import Watch, functions_opened, instrument, is_configuration
from sned.graph.untouched import Untouched

WIDTH, HEADS = Attribute("block", "width"), Attribute("block", "heads")

FORMULAS: dict[str, Callable[[Any, Any], Any]] = {
    "as it is": lambda w, h: w,
    "quotient": lambda w, h: w // h,
    "product": lambda w, h: w * h,
    "from the left": lambda w, h: 3 * w + 1,
    "from the right": lambda w, h: w * 3 - h,
    "what is left": lambda w, h: 1000 - w % h,
    "three quarters": lambda w, h: w // 4 * 3,
    "scale": lambda w, h: (w // h) ** -0.5,
    "root": lambda w, h: 1 / math.sqrt(w // h),
    "ratio": lambda w, h: w / h,
}


@pytest.mark.parametrize("name", FORMULAS)
@given(st.integers(4, 500), st.integers(1, 4), st.integers(4, 500), st.integers(1, 4))
def test_a_formula_is_the_computation_with_other_numbers(
    name: str, w: int, h: int, new_w: int, new_h: int
) -> None:
    compute = FORMULAS[name]
    with functions_opened():
        made = compute(Sized.of(w, WIDTH), Sized.of(h, HEADS))
        assert made == compute(w, h)
        assert made.formula.evaluate({}) == compute(w, h)
        assert made.formula.evaluate({WIDTH: new_w, HEADS: new_h}) == compute(new_w, new_h)
        assert made.formula.evaluate({HEADS: new_h}) == compute(w, new_h)
    assert made.formula.sources <= {WIDTH, HEADS}


def test_it_is_an_integer_everywhere_else() -> None:
    size = Sized.of(3, WIDTH)
    assert isinstance(size, int)
    assert [0, 1, 2][:size] == [0, 1, 2]
    assert [7] * size == [7, 7, 7]
    assert (1,) * size == (1, 1, 1)
    assert f"{size}" == "3"
    assert {3: "a"}[size] == "a"
    assert list(range(size)) == [0, 1, 2]
    assert size * 0.5 == 1.5
    assert size + Fraction(1, 2) == Fraction(7, 2)
    assert size + np.int64(2) == 5
    assert (torch.ones(2) * size).tolist() == [3.0, 3.0]
    assert divmod(size, 2) == (1, 1)
    assert -size == -3
    assert size < 4 <= size + 1
    assert pickle.loads(pickle.dumps(size)) == 3
    assert type(pickle.loads(pickle.dumps(size))) is int
    assert copy.deepcopy(size) == 3


def test_sizes_of_tensors_arrive_in_calls_with_their_source() -> None:
    ops = iter(range(100))
    x = torch.zeros(2, 6, 4)
    with (
        functions_opened(),
        Watch(lambda: next(ops), lambda tensor: 7 if tensor is x else None, lambda *_: None) as watch,
    ):
        b, n, c = x.shape
        x.view(b, n * c)
        x.reshape(x.size(0), -1, x.size(-1) // 2)
        torch.zeros(3, 4).view(12)
    found = {(use.value, use.from_end): use.formula.sources for use in watch.uses}
    assert found[2, 2] == {TensorAxis(7, 0)}
    assert found[24, 1] == {TensorAxis(7, 1), TensorAxis(7, 2)}
    assert found[2, 1] == {TensorAxis(7, 2)}
    assert 12 not in {use.value for use in watch.uses}


def test_comparisons_that_hold_are_noted_both_ways() -> None:
    with Watch(lambda: 0, lambda _: None, lambda *_: None) as watch:
        assert Sized.of(4, WIDTH) == Sized.of(4, HEADS)
        assert Sized.of(4, WIDTH) != Sized.of(5, HEADS)
    pairs = {(*use.formula.sources, *use.equals.sources) for use in watch.uses if use.equals}
    assert pairs == {(WIDTH, HEADS), (HEADS, WIDTH)}
    assert Sized.compared is None


class Holder(nn.Module):
    """Numbers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes, self.parts, self.flag, self.name_of = 8, (2, 3), [4, 4], True, "x"
        self.config = SimpleNamespace(heads=2, rate=0.5)
        self.layer = nn.Linear(2, 3)


def test_attributes_are_swapped_and_put_back() -> None:
    model = Holder()
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    with Untouched(model):
        instrument(model)
        assert isinstance(model.width, Sized)
        assert model.width.formula.sources == {Attribute("", "width")}
        assert model.sizes == (2, 3)
        assert [s.formula.sources for s in model.sizes] == [{Attribute("", "sizes", item=i)} for i in (0, 1)]
        assert model.config.heads.formula.sources == {Attribute("", "heads", holder="config")}
        assert model.layer.in_features.formula.sources == {Attribute("layer", "in_features")}
        assert model.flag is True
        assert type(model.config.rate) is float
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == before
    assert type(model.width) is int
    assert type(model.config.heads) is int


def test_zeros_stay_plain() -> None:
    model = nn.Conv2d(2, 2, 3, padding=(0, 1))
    model.offset, model.offsets, model.nothing = 0, (0, 0), ()
    with Untouched(model):
        instrument(model)
        assert type(model.offset) is int
        assert all(type(size) is int for size in model.offsets)
        assert model.nothing == ()
        assert all(isinstance(size, Sized) for size in model.padding)


def test_attributes_are_put_back_after_an_error() -> None:
    model = Holder()
    with pytest.raises(RuntimeError, match="in between"), Untouched(model):
        instrument(model)
        raise RuntimeError("in between")
    assert type(model.width) is int
    assert type(model.sizes[0]) is int


@pytest.mark.parametrize(
    ("value", "holds"),
    [(SimpleNamespace(a=1), True), (SimpleNamespace(), False), (nn.Linear(1, 1), False), (torch.zeros(1), False),
     (SimpleNamespace(a=torch.zeros(1)), False), (int, False), (len, False), ("text", False), (3, False)],
)  # fmt: skip
def test_what_counts_as_a_configuration(value: object, holds: bool) -> None:
    assert is_configuration(value) is holds


def test_what_stands_for_a_type_is_taken_for_it() -> None:
    number = OPENED["int"](Sized.of(12, Attribute("", "width")) / 5)
    assert (number, number.formula.evaluate({Attribute("", "width"): 20})) == (2, 4)
    assert isinstance(3, OPENED["int"])
    assert not isinstance(3, OPENED["float"])
    assert ({int: "int64"}[OPENED["int"]], OPENED["int"]("7")) == ("int64", 7)
