"""Weights that several operations read, and weights that are worked out: every runtime, every precision."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sned
from sned.export import TARGETS, Exported, find_target
from sned.export.target import DYNAMIC, FP16, FP32, INT8
from tests.export.runtimes import available

EVERY = [(name, precision) for name in TARGETS for precision in find_target(name).precisions]
LIMITS = {FP32: 1e-4, FP16: 0.005, INT8: 0.04, DYNAMIC: 0.04}


class Twice(nn.Module):
    """One linear layer called twice, then read the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(96, 96), nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.layer(x).relu()).relu()
        return self.head((x @ self.layer.weight).relu())


class Pyramid(nn.Module):
    """One convolution on each size of an image, and a norm of its own for each: what detectors end in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
        self.head = nn.Linear(32, 4)
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 3)

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.stem(x), nn.functional.avg_pool2d(self.stem(x), 2)
        ends = [norm(self.conv(x)).relu().mean((2, 3)) for norm, x in zip(self.norms, sizes, strict=True)]
        return self.head(torch.cat(ends, 1))


def exported(model: nn.Module, x: Tensor, folder: Path, to: str, precision: str) -> Exported:
    available(to)
    return sned.export(
        model, x[:1], to=to, quantize=None if precision == FP32 else precision, calibration=[x],
        out=folder / f"m{find_target(to).suffix}", runs=0,
    )  # fmt: skip


def apart(model: nn.Module, file: Exported, x: Tensor) -> float:
    """Relative error of a file on inputs it never saw."""
    with torch.no_grad():
        expected, got = model(x), file.module()(x)
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("network", "shape"), [(Twice, (96,)), (Pyramid, (3, 16, 16))], ids=["linear", "conv"]
)
@pytest.mark.parametrize(("to", "precision"), EVERY)
def test_what_several_operations_read_is_right_in_each_of_them(
    tmp_path: Path, to: str, precision: str, network: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = network().eval()
    file = exported(model, torch.randn(64, *shape), tmp_path, to, precision)
    assert apart(model, file, torch.randn(16, *shape)) < LIMITS[precision]


@pytest.mark.parametrize("precision", [INT8, DYNAMIC])
def test_a_weight_that_is_read_twice_lies_in_an_8_bit_onnx_file_once(tmp_path: Path, precision: str) -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    file = exported(Same().eval(), torch.randn(64, 256), tmp_path, "onnx", precision)
    assert 256 * 256 < file.size_bytes < 1.5 * 256 * 256


class Halved(nn.Module):
    """A parametrisation of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


OLD, NEW = nn.utils, nn.utils.parametrizations
WORKED_OUT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": NEW.weight_norm,
    "spectral_norm": NEW.spectral_norm,
    "own": lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
    "old weight_norm": OLD.weight_norm,
    "old spectral_norm": OLD.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


def convolutional(change: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)
    first, second, head = map(change, layers)
    return nn.Sequential(
        first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("to", "precision", "name"),
    [
        *((to, precision, "spectral_norm") for to, precision in EVERY),
        *(("onnx", INT8, name) for name in WORKED_OUT if name != "spectral_norm"),
        ("executorch", INT8, "weight_norm"),
    ],
)
def test_weights_that_are_worked_out_are_written_as_numbers(
    tmp_path: Path, to: str, precision: str, name: str
) -> None:
    model = convolutional(WORKED_OUT[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.rand(64, 3, 16, 16)
    file = exported(model, x, tmp_path, to, precision)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert apart(model.eval(), file, torch.rand(16, 3, 16, 16)) < LIMITS[precision]
    if to == "onnx":
        plain = exported(convolutional(lambda layer: layer).eval(), x, tmp_path, to, precision)
        assert file.size_bytes < 1.02 * plain.size_bytes
