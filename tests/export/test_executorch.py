"""What XNNPACK is given: split networks and means in its own terms, so that none of it is left to slow kernels."""

import json
import struct
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import ExportError
from sned.export import export_levels
from sned.export.target import DYNAMIC, FP32, INT8

pytest.importorskip("executorch")


class Split(nn.Module):
    """Split in three ways, and averaged with and without its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().chunk(2, dim=1)
        c, d, _ = torch.cat([b, self.left(a)], 1).split([5, 6, 1], 1)
        e, f = torch.cat([self.right(c), d], 1).split(6, 1)
        whole = torch.cat([e, f], 1)
        return self.head((whole * whole.mean((2, 3), keepdim=True)).mean((2, 3)))


@pytest.mark.parametrize("precision", [FP32, INT8])
def test_splits_and_means_are_left_to_no_slow_kernel(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    model, x = Split().eval(), torch.randn(1, 3, 16, 16)
    made = sned.export(
        model,
        x,
        to="executorch",
        quantize=None if precision == FP32 else precision,
        calibration=[torch.randn(32, 3, 16, 16) for _ in range(4)],
        out=tmp_path / "m.pte",
        runs=0,
    )
    assert "XNNPACK runs all of it." in made.notes
    unseen = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        wanted, got = model(unseen), made.module()(unseen)
    torch.testing.assert_close(got, wanted, atol=1e-4 if precision == FP32 else 0.05, rtol=1e-4)


def test_in_dynamic_8_bits_convolutions_stay_as_they_are(tmp_path: Path) -> None:
    """Behind a norm that XNNPACK does not take, one in 8 bits answered with something else."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv2d(16, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    made = sned.export(
        model, torch.randn(1, 3, 16, 16), to="executorch", quantize=DYNAMIC, out=tmp_path / "m.pte", runs=0
    )
    unseen = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        wanted, got = model(unseen), made.module()(unseen)
    assert 1e-5 < float((got - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("layer", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("precision", [FP32, INT8])
def test_convolutions_along_three_axes_are_refused_by_name(
    tmp_path: Path, precision: str, layer: type[nn.Module]
) -> None:
    model, x = nn.Sequential(nn.ReLU(), layer(2, 3, 3)), torch.randn(1, 2, 4, 4, 4)
    with pytest.raises(
        ExportError,
        match=r"'aten\.conv(_transpose)?3d\.\w+' in module '1' has no ExecuTorch kernel\. Replace",
    ):
        sned.export(model, x, to="executorch", quantize=precision, out=tmp_path / "m.pte", runs=0)


class Blurred(nn.Module):
    """A standardised convolution, called twice, and a fixed filter, each with a norm to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 3, 3), nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.register_buffer("blur", torch.full((3, 1, 2, 2), 0.25))
        for norm in self.norms:
            norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        variance, mean = torch.var_mean(weight, (1, 2, 3), keepdim=True)
        weight = (weight - mean) / (variance * 27 + 1e-6).sqrt()
        for norm in self.norms[:2]:
            x = norm(nn.functional.conv2d(x, weight, self.conv.bias)).relu()
        return self.norms[2](nn.functional.conv2d(x, self.blur, groups=3))


@pytest.mark.parametrize("precision", [FP32, INT8])
def test_weights_that_are_worked_out_or_kept_in_buffers_are_weights(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    model, x = Blurred().eval(), torch.randn(32, 3, 16, 16)
    made = sned.export(
        model, x[:1], to="executorch", quantize=None if precision == FP32 else precision, calibration=[x],
        out=tmp_path / "m.pte", runs=0,
    )  # fmt: skip
    assert "XNNPACK runs all of it." in made.notes
    unseen = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        wanted, got = model(unseen), made.module()(unseen)
    assert float((got - wanted).norm() / wanted.norm()) < (1e-5 if precision == FP32 else 0.05)


def test_weights_lie_close_together(tmp_path: Path) -> None:
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program

    model, path = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4))).eval(), tmp_path / "m.pte"
    sned.export(model, torch.randn(1, 5), to="executorch", out=path, runs=0)
    pieces = _flatbuffer_to_program(path.read_bytes()).segments
    ends = [piece.offset + piece.size for piece in pieces]
    assert len(pieces) > 8
    assert all(piece.offset % 16 == 0 for piece in pieces)
    assert all(piece.offset - end < 16 for piece, end in zip(pieces[1:], ends, strict=False))


def test_constants_have_short_names_and_two_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program

    torch.manual_seed(0)
    models = {name: nn.Sequential(*(nn.Linear(5, 5) for _ in range(10))).eval() for name in ("one", "two")}
    x, path = torch.randn(1, 5), tmp_path / "m.pte"
    export_levels(models, x, to="executorch", out=path)
    names = [entry.key for entry in _flatbuffer_to_program(path.read_bytes()).named_data]
    assert len(names) == len(set(names)) == 40
    assert {len(name) for name in names} == {12}
    monkeypatch.setattr("sned.export.executorch._NAME_BYTES", 1)
    with pytest.raises(ExportError, match=r"Duplicate key \w\w with different data"):
        export_levels(models, x, to="executorch", out=tmp_path / "n.pte")
    assert not (tmp_path / "n.pte").exists()


class Shuffled(nn.Module):
    """Two convolutions with a channel shuffle between them, by axes that are swapped or ordered anew."""

    def __init__(self, *, swapped: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        parts = x.view(x.shape[0], 2, 4, *x.shape[2:])
        parts = parts.transpose(1, 2) if self.swapped else parts.permute(0, 2, 1, -2, 4)
        return self.second(parts.reshape(x.shape))


@pytest.mark.parametrize("swapped", [True, False])
def test_channels_are_shuffled_in_8_bits(tmp_path: Path, swapped: bool) -> None:
    torch.manual_seed(0)
    model, x = Shuffled(swapped=swapped).eval(), torch.randn(32, 3, 6, 6)
    made = sned.export(
        model, x[:1], to="executorch", quantize=INT8, calibration=[x], out=tmp_path / "m.pte", runs=0
    )
    with torch.no_grad():
        torch.testing.assert_close(made.module()(x), model(x), atol=0.05, rtol=0)
    assert operations(made.path).count("XNNConvert") == 2  # where the network begins and where it ends


def operations(path: Path) -> list[str]:
    """What XNNPACK runs, read by the tools of ExecuTorch."""
    from executorch.exir._serialize._flatbuffer import _flatc_decompile
    from executorch.exir._serialize._program import deserialize_pte_binary

    [delegate] = deserialize_pte_binary(path.read_bytes()).program.backend_delegate_data
    start, size = struct.unpack("<II", delegate.data[10:18])
    graph, schema = path.with_name("graph.bin"), path.with_name("schema.fbs")
    graph.write_bytes(delegate.data[start : start + size])
    schema.write_bytes(files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes())
    _flatc_decompile(str(path.parent), str(schema), str(graph))
    told = json.loads(graph.with_suffix(".json").read_text().replace(": inf", ": Infinity"))
    return [node["xnode_union_type"] for node in told["xnodes"]]
