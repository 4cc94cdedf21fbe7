"""A device that no machine has: it computes on the CPU, but refuses what MPS and GPUs refuse.

Its tensors do not mix with others, have no float64, and cannot be looked into from NumPy. Run as a program, it puts
networks there and prints what became of them, as JSON; PyTorch knows the device in that process alone.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import sned
from sned.saliency import CRITERIA

MISSING = 77
"""Exit status where this version of PyTorch knows no devices written in Python."""

NAME = "elsewhere"
MOVES = ("aten::_to_copy", "aten::copy_")
"""What may see tensors of two devices."""


class There(Tensor):
    """A tensor of the device; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[There], inner: Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within it there is the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An op on the values, its result on the device where its tensors are there, or where it is asked for there."""
    name, asked = func._schema.name, kwargs.get("device")
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in given if isinstance(tensor, There)]
    _refuse_mixing(name, args, given, there)
    stays = bool(there) if asked is None else torch.device(asked).type == NAME
    if name == "aten::copy_":
        stays = isinstance(args[0], There)
    here = {key: torch.device("cpu") if key == "device" and stays else value for key, value in kwargs.items()}
    inner_args, inner_kwargs = tree_map_only(There, lambda tensor: tensor.inner, (args, here))
    result = CELLS.get(name, func)(*inner_args, **inner_kwargs)
    if not stays:
        return result
    if any(isinstance(r, Tensor) and r.dtype == torch.float64 for r in tree_leaves(result)):
        raise TypeError(f"{name}: this device has no float64")
    result = tree_map(lambda r: There(r) if isinstance(r, Tensor) and not isinstance(r, There) else r, result)
    return result if name == "aten::_to_copy" else return_and_correct_aliasing(func, args, kwargs, result)


def _refuse_mixing(name: str, args: Any, given: list[Tensor], there: list[Tensor]) -> None:
    """As CUDA does, positions of an index may be on the CPU, and so may numbers."""
    others = [tensor for tensor in given if not isinstance(tensor, There) and tensor.ndim]
    indexed = name.startswith("aten::index") and isinstance(args[0], There)
    if there and others and name not in MOVES and not indexed:
        raise RuntimeError(f"{name}: tensors on {NAME} and {others[0].device}")


def _lstm_cell(inputs: Tensor, hidden: Tensor, cell: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = sum(biases, inputs + hidden).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell, inputs


def _gru_cell(inputs: Tensor, hidden: Tensor, state: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
    first, second = biases or (0, 0)
    (r, z, n), (hr, hz, hn) = (inputs + first).chunk(3, 1), (hidden + second).chunk(3, 1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return new + (z + hz).sigmoid() * (state - new), inputs


CELLS = {"aten::_thnn_fused_lstm_cell": _lstm_cell, "aten::_thnn_fused_gru_cell": _gru_cell}
"""What the CPU has no kernels for."""


class Attention(nn.Module):
    """A transformer's block, its heads in one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.feed = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.out(y)
        return self.head((x + self.feed(x)).mean(1))


class Tagger(nn.Module):
    """Words to classes by a recurrent layer."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(50, 16), nn.Linear(48, 7)
        self.body = kind(16, 24, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.words(x))[0])


class Table(nn.Module):
    """Holds a tensor as a plain attribute, and moves it along."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.table = nn.Linear(32, 16), nn.Linear(16, 4), torch.linspace(0.5, 1, 32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Table:
        super()._apply(fn, recurse)
        self.table = fn(self.table)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x * self.table).relu())


def convolutions() -> nn.Module:
    """Plain, grouped and transposed ones."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Hardswish(), nn.ConvTranspose2d(16, 8, 2, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def _image(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8)


def _rows(n: int) -> Tensor:
    return torch.randn(n, 10, 32)


def _words(n: int) -> Tensor:
    return torch.randint(0, 50, (n, 9))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "convolutions": (convolutions, _image),
    "attention": (Attention, _rows),
    "lstm": (lambda: Tagger(nn.LSTM), _words),
    "gru": (lambda: Tagger(nn.GRU), _words),
    "plain attribute": (Table, _rows),
}


class Case:
    """A network on the CPU and its copy on the device, and what both answer."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        make, self.inputs = NETWORKS[name]
        self.here, self.x = make().eval(), self.inputs(4)
        self.there, self.y = copy.deepcopy(self.here).to(NAME), self.x.to(NAME)

    def difference(self, here: nn.Module, there: nn.Module) -> float:
        """Between the answers of both; raises where the second is not on the device."""
        places = {tensor.device.type for tensor in there.state_dict().values()}
        if places != {NAME}:
            raise AssertionError(f"the network is on {places}")
        with torch.no_grad():
            return float((here(self.x) - there(self.y).cpu()).abs().max())


def surgery(name: str, folder: Path) -> float:
    """Half of every group goes; saved and loaded."""
    case = Case(name)
    here, there = (
        sned.apply(model, sned.plan(sned.trace(model, x), sparsity=0.5))
        for model, x in ((case.here, case.x), (case.there, case.y))
    )
    sned.save(there, folder / "small.safetensors")
    again = sned.load(case.there, folder / "small.safetensors")
    return max(case.difference(here, there), case.difference(here, again))


def pruned(name: str, folder: Path) -> float:
    """The whole road, with inputs to learn from and a measure that wants the network where it was."""
    case = Case(name)
    batches = [case.inputs(32) for _ in range(3)]
    budget, seen = sned.Budget(macs="60%"), []

    def evaluate(model: nn.Module) -> float:
        seen.append(float(model(case.y).cpu().mean()))
        return seen[-1]

    here = sned.prune(case.here, case.x, budget=budget, calibration=batches)
    moved = [batch.to(NAME) for batch in batches]
    there = sned.prune(case.there, case.y, budget=budget, calibration=moved, evaluate=evaluate)
    assert len(seen) == 2, "the measure was not asked"
    return case.difference(here.model, there.model)


def scored(name: str, folder: Path) -> float:
    """By every criterion, those that learn from inputs among them."""
    case = Case("convolutions")
    taught: dict[str, Any] = {"calibration": [case.inputs(64).to(NAME)]}
    taught["labels"] = torch.zeros(64, dtype=torch.int64, device=NAME)
    here, there = sned.trace(case.here, case.x), sned.trace(case.there, case.y)
    options = (
        ({}, taught) if name in ("l2", "batchnorm", "geometric-median", "synflow", "near-zero") else (taught,)
    )
    for option in options:
        plans = [sned.plan(graph, sparsity=0.5, saliency=name, **option) for graph in (here, there)]
        assert plans[0].to_json() == plans[1].to_json(), "other units"
    return 0.0


def thinned(name: str, folder: Path) -> float:
    """Zeros inside tensors, and matching."""
    case = Case(name)
    batches = [case.inputs(64)]
    here, there = (
        sned.sparsify(model, x, pattern="2:4", calibration=batches).model
        for model, x in ((case.here, case.x), (case.there, case.y))
    )
    matched = sned.sparsify(case.there, case.y, pattern="2:4", calibration=batches, match_seconds=0.3).model
    case.difference(here, matched)
    return case.difference(here, there)


WAYS: dict[str, tuple[Callable[[str, Path], float], tuple[str, ...]]] = {
    "surgery": (surgery, tuple(NETWORKS)),
    "prune": (pruned, ("convolutions", "plain attribute")),
    "score": (scored, tuple(CRITERIA)),
    "sparsify": (thinned, ("convolutions", "attention")),
}


def main(folder: Path) -> None:
    """Print `{way: {name: difference or error}}`."""
    set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is None:
        sys.exit(MISSING)
    set_up(NAME)
    told: dict[str, dict[str, float | str]] = {}
    with Device():
        for way, (work, names) in WAYS.items():
            for name in names:
                try:
                    told.setdefault(way, {})[name] = work(name, folder)
                except Exception as error:  # noqa: BLE001 (told, and the next one is tried)
                    told.setdefault(way, {})[name] = f"{type(error).__name__}: {error}"[:500]
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
