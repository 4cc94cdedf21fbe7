"""Networks that were compiled, cast, or set up by their first batch go to disk and come back; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sned import apply, load, save, trace
from sned.errors import CheckpointError
from tests.graph.oracle import call, lively, state

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Module:
    return lively(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))


def convolutional() -> nn.Module:
    return lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def cut(model: nn.Module, example: Any, name: str = "0") -> nn.Module:
    """Without two units of a group."""
    return apply(model, trace(model, example).plan({name: [0, 3]}))


def test_a_network_that_is_compiled_after_pruning_is_saved_as_it_was(tmp_path: Path) -> None:
    small = cut(linear(), ROWS)
    save(compiled(small), tmp_path / "a.safetensors")
    for fresh in (linear(), compiled(linear())):
        back = load(fresh, tmp_path / "a.safetensors")
        assert type(back) is nn.Sequential
        assert torch.equal(call(back, ROWS), call(small, ROWS))


def test_a_network_that_is_compiled_before_pruning_comes_back_into_another(tmp_path: Path) -> None:
    small = cut(compiled(linear()), ROWS, "_orig_mod.0")
    save(small, tmp_path / "a.safetensors")
    back = load(compiled(linear()), tmp_path / "a.safetensors")
    assert torch.equal(call(back, ROWS), call(small, ROWS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_that_was_cast_comes_back_in_its_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    small = cut(convolutional(), torch.randn(2, 3, 8, 8)).to(dtype)
    save(small, tmp_path / "a.safetensors")
    fresh = convolutional()
    back = load(fresh, tmp_path / "a.safetensors")
    assert all(torch.equal(value, state(small)[name]) for name, value in state(back).items())
    assert {value.dtype for value in back.parameters()} == {dtype}
    assert {value.dtype for value in fresh.parameters()} == {torch.float32}
    again = load(convolutional().to(dtype), tmp_path / "a.safetensors")
    assert all(torch.equal(value, state(small)[name]) for name, value in state(again).items())


def test_a_network_that_was_pruned_in_half_precision_comes_back_into_any(tmp_path: Path) -> None:
    small = cut(convolutional().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16())
    save(small, tmp_path / "a.safetensors")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        back = load(convolutional().to(dtype), tmp_path / "a.safetensors")
        assert all(torch.equal(value, state(small)[name]) for name, value in state(back).items())
        assert {value.dtype for value in back.parameters()} == {torch.bfloat16}


class Centred(nn.Module):
    """Takes its shift from the first batch that it sees, as ActNorm does."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(16))
        self.register_buffer("seen", seen)

    def forward(self, x: Tensor) -> Tensor:
        if not self.seen.item():
            self.shift.data.copy_(-x.mean(0))
            self.seen.fill_(1)
        return x + self.shift


def centred(kind: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), Centred(torch.tensor(0, dtype=kind)), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_a_flag_that_is_stored_decides_how_a_fresh_network_is_read(
    tmp_path: Path, kind: torch.dtype, dtype: torch.dtype
) -> None:
    model = centred(kind)
    model(ROWS)
    small = cut(model.eval(), ROWS)
    save(small, tmp_path / "a.safetensors")
    fresh = centred(kind).eval().to(dtype)
    back = load(fresh, tmp_path / "a.safetensors")
    assert torch.equal(call(back, ROWS), call(small, ROWS))
    assert not fresh[1].seen


class Summed(nn.Module):
    """Reads its two inputs out of a container."""

    def __init__(self, names: tuple[Any, Any]) -> None:
        super().__init__()
        self.names, self.a, self.b = names, nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, given: Any) -> Tensor:
        left, right = given if isinstance(given, tuple) else (given[name] for name in self.names)
        return self.b(torch.relu(self.a(left + right)))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_inputs_that_would_come_back_as_others_are_refused(tmp_path: Path) -> None:
    for given in (Pair(ROWS, ROWS), {0: ROWS, 1: ROWS}, [{"deep": (Pair(ROWS, ROWS),)}]):
        names = (0, 1)
        model = Summed(names) if not isinstance(given, list) else Deep()
        small = cut(model, (given,), "a")
        with pytest.raises(CheckpointError, match="some are in a named tuple or a dict by other keys"):
            save(small, tmp_path / "a.safetensors")
    small = cut(Summed(("x", "y")), ({"x": ROWS, "y": ROWS},), "a")
    save(small, tmp_path / "a.safetensors")
    back = load(Summed(("x", "y")), tmp_path / "a.safetensors")
    assert torch.equal(back({"x": ROWS, "y": ROWS}), small({"x": ROWS, "y": ROWS}))


class Deep(Summed):
    """Its container lies in others."""

    def __init__(self) -> None:
        super().__init__((0, 1))

    def forward(self, given: Any) -> Tensor:
        return super().forward(tuple(given[0]["deep"][0]))


def test_an_example_that_no_file_may_ask_for_is_refused(tmp_path: Path) -> None:
    small = cut(convolutional(), torch.zeros(1).expand(1100, 3, 224, 224))
    with pytest.raises(CheckpointError, match=r"at most 536,870,912 bytes, got 662,323,200\. .*`x\[:8\]`"):
        save(small, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
