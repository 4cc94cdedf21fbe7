"""What every runtime's exporter must do. ONNX always runs; the others where their extra is installed."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sned
from sned.errors import ExportError, UserError
from sned.export import TARGETS, Exported, export_levels, find_target
from sned.export.target import DYNAMIC, FP16, FP32, INT8
from sned.surgery.masks import hold_masks, masks_of
from tests.export.networks import NETWORKS, Of, convolutional, encoder, images
from tests.export.runtimes import SHARING, available

QUANTISED = [
    (name, precision) for name in TARGETS for precision in find_target(name).precisions if precision != FP32
]
NO_SMALLER = {("executorch", "convolutional", FP16), ("executorch", "convolutional", DYNAMIC)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@lru_cache
def network(name: str) -> nn.Module:
    return NETWORKS[name][0]()


@lru_cache
def made(folder: Path, to: str, name: str, precision: str) -> Exported:
    """Each network to each runtime once, for all tests."""
    available(to)
    inputs = NETWORKS[name][1]
    return sned.export(
        network(name),
        inputs(1),
        to=to,
        quantize=None if precision == FP32 else precision,
        calibration=[inputs(32, seed) for seed in range(4)],
        out=folder / f"{to}-{name}-{precision}{find_target(to).suffix}",
        runs=3,
    )


def answer(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output["logits"] if isinstance(output, dict) else output


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("to", TARGETS)
def test_the_file_computes_what_the_model_computes_on_inputs_it_never_saw(
    folder: Path, to: str, name: str
) -> None:
    exported = made(folder, to, name, FP32)
    unseen = NETWORKS[name][1](7, seed=99)
    torch.testing.assert_close(
        answer(exported.module(), unseen), answer(network(name), unseen), atol=1e-4, rtol=1e-4
    )
    assert exported.max_abs_diff < 1e-4
    assert exported.parity.top1_agreement == 1
    assert exported.parity.rows >= 4 * 32


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_told_about_the_file_is_so(folder: Path, to: str) -> None:
    target, exported = find_target(to), made(folder, to, "encoder", FP32)
    assert exported.inputs == ("ids", "mask")
    assert exported.outputs == ("logits",)
    assert exported.path.suffix == target.suffix
    belongs = [exported.path, exported.path.with_suffix(".bin")] if to == "openvino" else [exported.path]
    files = [
        file for path in belongs for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    ]
    assert exported.size_bytes == sum(file.stat().st_size for file in files)
    assert exported.dynamic_batch == target.dynamic_batch
    assert bool(exported.static_because) != exported.dynamic_batch
    assert (exported.latency is not None) == target.here
    if not target.here:
        assert any("was not run" in note for note in exported.notes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("to", "precision"), QUANTISED)
def test_coarser_files_are_smaller_and_stay_close(folder: Path, to: str, precision: str, name: str) -> None:
    fine, coarse = made(folder, to, name, FP32), made(folder, to, name, precision)
    assert coarse.precision == precision
    assert coarse.parity.error > fine.parity.error
    limit = 0.3 if (name, precision) == ("encoder", INT8) else 0.01 if precision == FP16 else 0.08
    unseen = NETWORKS[name][1](64, seed=99)
    expected, got = answer(network(name), unseen), answer(coarse.module(), unseen)
    assert float((got - expected).norm() / expected.norm()) < limit
    if (to, name, precision) in NO_SMALLER:
        assert any("32 bits" in note for note in coarse.notes)
    else:
        assert _weights(coarse.path) < 0.75 * _weights(fine.path)


def _weights(path: Path) -> int:
    """Bytes of everything but the text that small files mostly consist of."""
    import zlib

    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if path.suffix == ".xml":
        files = [path.with_suffix(".bin")]
    return sum(len(zlib.compress(file.read_bytes())) for file in files)


@pytest.mark.parametrize("to", TARGETS)
def test_zeros_are_written_where_the_runtime_gains_and_only_there(tmp_path: Path, to: str) -> None:
    available(to)
    target, model = find_target(to), convolutional()
    generator = torch.Generator().manual_seed(0)
    wide = {"pointwise.0.weight": model.pointwise[0].weight, "head.weight": model.head.weight}
    hold_masks(model, {name: torch.rand(w.shape, generator=generator) > 0.9 for name, w in wide.items()})
    path = tmp_path / f"model{target.suffix}"
    plain = sned.export(model, images(1), to=to, out=path, sparse=False, runs=0)
    sparse = sned.export(model, images(1), to=to, out=path, runs=0)
    assert masks_of(model).keys() == wide.keys()  # they still hold
    unseen = images(5, seed=9)
    torch.testing.assert_close(sparse.module()(unseen), answer(model, unseen), atol=1e-4, rtol=1e-4)
    if to in ("onnx", "litert", "coreml"):
        assert sparse.size_bytes < plain.size_bytes - 4000
    else:
        assert abs(sparse.size_bytes - plain.size_bytes) < 200
    if target.sparse:
        assert target.sparse in sparse.notes
    else:
        assert any("no form for zeros" in note for note in sparse.notes)
        with pytest.raises(UserError, match="no form for zeros inside tensors"):
            sned.export(model, images(1), to=to, out=path, sparse=True)


@pytest.mark.parametrize(
    ("to", "precision"),
    [
        (to, p)
        for to in TARGETS
        for p in find_target(to).precisions
        if find_target(to).sparse and p != DYNAMIC
    ],
)
def test_nothing_is_claimed_for_zeros_that_are_not_stored(tmp_path: Path, to: str, precision: str) -> None:
    available(to)
    target = find_target(to)
    words = {"to": to, "quantize": precision, "out": tmp_path / f"model{target.suffix}", "runs": 0}
    model = convolutional()
    for zeros in (0, 3):
        model.head.weight.data[:, :zeros] = 0
        made = sned.export(model, images(1), calibration=[images(8)], sparse=True, **words)
        if to != "openvino" or not zeros:  # its file keeps its zeros, and its sentence says so
            assert target.sparse not in made.notes
            assert any("No weight is stored sparse" in note for note in made.notes)


@pytest.mark.parametrize("to", SHARING)
def test_networks_in_one_file_share_equal_weights(tmp_path: Path, to: str) -> None:
    available(to)
    suffix = find_target(to).suffix

    class Two(nn.Module):
        def __init__(self, shared: nn.Module, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.shared, self.own = shared, nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(torch.relu(self.shared(x)))

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    models = {"fast": Two(backbone, 1).eval(), "good": Two(backbone, 2).eval()}
    x = torch.randn(1, 64)
    levels = export_levels(models, x, to=to, out=tmp_path / f"both{suffix}")
    alone = sned.export(models["fast"], x, to=to, out=tmp_path / f"one{suffix}", runs=0)
    assert levels["fast"].size_bytes == levels["good"].size_bytes < 1.4 * alone.size_bytes
    unseen = torch.randn(3, 64)
    for name, model in models.items():
        torch.testing.assert_close(levels[name].module()(unseen), answer(model, unseen), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(answer(models["fast"], unseen), answer(models["good"], unseen), atol=1e-2)


@pytest.mark.parametrize("to", TARGETS)
def test_no_file_names_folders_or_sources_of_the_machine_that_made_it(folder: Path, to: str) -> None:
    for name in NETWORKS:
        path = made(folder, to, name, FP32).path
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in files:
            written = file.read_bytes()
            assert b"networks.py" not in written
            assert str(Path(torch.__file__).parent).encode() not in written
            assert str(Path(sned.__file__).parent).encode() not in written


@pytest.mark.parametrize("to", TARGETS)
def test_an_open_batch_is_had_or_refused_when_it_is_asked_for(tmp_path: Path, to: str) -> None:
    available(to)
    target = find_target(to)
    words = {"to": to, "out": tmp_path / f"model{target.suffix}", "runs": 0}
    if not target.dynamic_batch:
        with pytest.raises(UserError, match=r"written for one batch size.*`dynamic_batch`.*onnx, openvino"):
            sned.export(convolutional(), images(2), dynamic_batch=True, **words)
        return
    fixed = sned.export(convolutional(), images(2), dynamic_batch=False, **words)
    assert (fixed.dynamic_batch, fixed.batch, fixed.static_because) == (
        False,
        2,
        "That is what was asked for.",
    )
    with pytest.raises(sned.SnedError, match=r"fixes the size of the batch.*Leave out `dynamic_batch`"):
        sned.export(Of(lambda x: x.reshape(2, 3, -1).sum(2)), torch.rand(2, 12), dynamic_batch=True, **words)
    assert sned.export(convolutional(), images(2), dynamic_batch=True, **words).dynamic_batch


def test_an_exact_file_may_be_asked_for(tmp_path: Path) -> None:
    words = {"out": tmp_path / "model.onnx", "tolerance": 0, "runs": 0}
    assert sned.export(nn.Flatten(), images(1), **words).max_abs_diff == 0
    with pytest.raises(ExportError, match=r"int8 file does not compute.*where 0 is allowed"):
        sned.export(convolutional(), images(1), quantize="int8", **words)


def test_weights_in_bfloat16_are_compared_in_single_precision(tmp_path: Path) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 4).bfloat16())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table.float()

    x = torch.randn(4, 4)
    made = sned.export(Inside(), x, out=tmp_path / "model.onnx", runs=0)
    assert made.max_abs_diff == 0


@pytest.mark.parametrize(
    ("to", "precision", "kind"),
    [
        *((to, FP32, torch.bfloat16) for to in TARGETS),
        ("onnx", INT8, torch.bfloat16),
        ("onnx", DYNAMIC, torch.float16),
        ("executorch", FP16, torch.bfloat16),
        ("litert", FP32, torch.float16),
        ("litert", INT8, torch.float16),
    ],
)
def test_networks_in_16_bits_are_written_in_floats_that_the_runtime_has(
    tmp_path: Path, to: str, precision: str, kind: torch.dtype
) -> None:
    available(to)
    torch.manual_seed(0)
    casts = Of(lambda x: (x.to(kind).bfloat16() if kind == torch.bfloat16 else x.to(kind).half()).relu())
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), casts, nn.Linear(32, 4)).to(kind)
    ids, unseen = torch.randint(0, 50, (32, 6)), torch.randint(0, 50, (8, 6))
    made = sned.export(
        model, ids[:2], to=to, quantize=None if precision == FP32 else precision, calibration=[ids],
        out=tmp_path / f"m{find_target(to).suffix}", runs=0,
    )  # fmt: skip
    assert {weight.dtype for weight in model.parameters()} == {kind}
    assert any("Written in 32-bit floats" in note for note in made.notes) == (precision == FP32)
    model[2] = nn.ReLU()
    got, expected = made.module()(unseen), answer(model.float(), unseen)
    assert got.dtype == torch.float32
    limit = {FP32: 1e-5, FP16: 5e-3}.get(precision, 0.05)
    torch.testing.assert_close(got, expected, atol=limit, rtol=0)


@pytest.mark.parametrize(("to", "precision"), [("litert", FP32), ("litert", INT8), ("onnx", DYNAMIC)])
def test_images_in_16_bits_enter_a_file_of_32(tmp_path: Path, to: str, precision: str) -> None:
    available(to)
    model, unseen = convolutional(), images(5, seed=9)
    made = sned.export(
        convolutional().half(), images(1).half(), to=to, quantize=precision, calibration=[images(64).half()],
        out=tmp_path / f"m{find_target(to).suffix}", runs=0,
    )  # fmt: skip
    got, expected = made.module()(unseen.half()), answer(model, unseen)
    assert float((got - expected).norm() / expected.norm()) < (2e-3 if precision == FP32 else 0.05)


def test_the_users_measure_is_asked_about_the_model_and_about_the_file(tmp_path: Path) -> None:
    asked: list[nn.Module] = []
    rows = images(6)
    expected = answer(network("convolutional"), rows).argmax(1)

    def accuracy(model: nn.Module) -> float:
        asked.append(model)
        return float((model(rows).argmax(1) == expected).float().mean()) / len(asked)

    exported = sned.export(
        network("convolutional"), images(1), out=tmp_path / "model.onnx", evaluate=accuracy, runs=0
    )
    assert exported.torch_accuracy == 1.0
    assert exported.accuracy == 0.5
    assert asked[0] is network("convolutional")
    weights = list(asked[1].parameters())
    assert weights[0].device == torch.device("cpu")  # evaluations ask for it
    assert sum(weight.numel() for weight in weights) == 0


def test_int8_without_calibration_says_that_it_guessed(tmp_path: Path) -> None:
    exported = sned.export(convolutional(), images(1), quantize="int8", out=tmp_path / "m.onnx", runs=0)
    assert any("random inputs" in note for note in exported.notes)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = encoder().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = NETWORKS["encoder"][1]
    sned.export(model, inputs(1), quantize="int8", calibration=[inputs(8)], out=tmp_path / "m.onnx", runs=2)
    assert model.training
    assert not model._forward_hooks
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_package_can_be_called_and_its_names_be_imported() -> None:
    import sned.export as package

    assert sned.export is package
    assert callable(package)
    assert package.feeds is sned.export.feeds
