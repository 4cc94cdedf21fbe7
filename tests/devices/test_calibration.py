"""Calibrations: what is learnt from op times, the file format, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from sned.devices import Device, cost_model, find_device
from sned.devices.calibrate import calibrate_host, held_out_fit
from sned.devices.calibration import (
    OPS,
    Calibration,
    Sample,
    belonging,
    find_calibration,
    parse_calibration,
    read_calibration,
    save_calibration,
)
from sned.devices.design import design
from sned.devices.figures import figures
from sned.devices.fitted import excess, fit
from sned.devices.probe import environment
from sned.devices.recipes import RECIPES
from sned.devices.roofline import Roofline
from sned.devices.store import Store
from sned.errors import DeviceError, MeasureError
from sned.graph import Graph, trace
from tests.devices.calibrations import law, made_up
from tests.devices.networks import Residual, random_counts, sizes, trained

COLD = {"footprint_bytes": [1e6, 4e6], "byte_us": {"window": [0, 1e-4]}}


@pytest.fixture(scope="module")
def phone() -> Device:
    return find_device("raspberry-pi-5")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(trained(Residual()), torch.randn(1, 3, 24, 24))


@pytest.mark.parametrize("block", [1, 16])
def test_the_design_has_every_op_and_only_what_the_format_knows(block: int) -> None:
    shapes = design(block, 600)
    kinds = {shape.family.recipe for shape in shapes}
    blocked = {name for name in OPS if name.startswith(("blocked", "direct", "reorder"))}
    assert kinds == (set(OPS) if block > 1 else set(OPS) - blocked)
    assert len(set(shapes)) == len(shapes)
    for shape in shapes:
        widths, statics = OPS[shape.family.recipe]
        assert (len(shape.widths), {name for name, _ in shape.family.statics}) == (len(widths), set(statics))
        assert all(width >= 1 and width == int(width) for width in shape.widths)
    first = [shape.family.recipe for shape in shapes[:100]]
    assert len(set(first)) > 5


def test_widths_come_back_from_coordinates() -> None:
    for shape in design(16, 300):
        recipe = RECIPES[shape.family.recipe]
        if not shape.widths:
            continue
        point = recipe.coordinates(shape.columns, 16)
        back = recipe.widths(point, 16)
        for column, again, width in zip(recipe.coordinates(back, 16), point, shape.widths, strict=False):
            np.testing.assert_allclose(column, again)
            assert width >= 1
        assert all(b[0] >= w for b, w in zip(back, shape.widths, strict=True))


def test_what_a_calibration_cannot_tell_is_said(phone: Device, graph: Graph, tmp_path: Path) -> None:
    """Forty products say nothing of convolutions; one reshape, which has no widths, is all that there is of it."""
    product = {"op": "gemm", "widths": {"m": 1, "k": 64, "n": 64}, "us": 3.0}
    reshape = {"op": "reshape", "statics": {"op": "Reshape"}, "widths": {}, "us": 0.1}
    held = json.loads(made_up(phone, count=60, runtime_version=onnxruntime.__version__).model_dump_json())
    save_calibration(parse_calibration({**held, "samples": [product] * 40 + [reshape]}), tmp_path)
    [note] = cost_model(graph, phone, calibrations=tmp_path).notes
    assert "too few samples of plain_conv" in note
    assert "estimated from its data sheet" in note
    assert "gemm" not in note
    assert "reshape" not in note
    save_calibration(
        parse_calibration({**held, "samples": [product] * 5 + [told_with(CONV)["samples"][0]] * 30}), tmp_path
    )
    [note] = cost_model(graph, phone, calibrations=tmp_path).notes
    assert "gemm of one row" in note
    assert "plain_conv" not in note


def test_an_op_without_widths_is_calibrated_beside_others(phone: Device, tmp_path: Path) -> None:
    """Flattening has no widths, and so is one op, however many plans there are."""
    save_calibration(made_up(phone, count=2400, runtime_version=onnxruntime.__version__), tmp_path)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    cost = cost_model(trace(network, torch.randn(1, 3, 8, 8)), phone, calibrations=tmp_path)
    assert cost.basis == "calibrated"
    [note] = cost.notes
    assert "too few samples of reshape to tell" in note


def test_what_was_held_out_is_told(phone: Device) -> None:
    roofline = Roofline(figures(phone))
    samples = [sample.timed() for sample in made_up(phone, count=600).samples]
    told = held_out_fit(samples, roofline)
    assert told.samples == pytest.approx(100, abs=5)
    assert told.within_20 > 0.9
    assert told.median_error < 0.05


def test_an_op_without_samples_gets_the_usual_ratio(phone: Device) -> None:
    roofline = Roofline(figures(phone))
    samples = [s.timed() for s in made_up(phone, count=2400).samples]
    fitted = fit([s for s in samples if s.shape.family.recipe != "gemm"], roofline)
    shape = next(s.shape for s in samples if s.shape.family.recipe == "gemm")
    assert float(fitted.op_us(shape.family, shape.columns)[0]) == pytest.approx(law(roofline, shape), rel=0.3)


def test_a_calibration_from_elsewhere_is_used(phone: Device, graph: Graph, tmp_path: Path) -> None:
    path = save_calibration(made_up(phone, count=2400), tmp_path)
    assert read_calibration(path) == find_calibration(phone.name, "onnxruntime", 1, folder=tmp_path)
    cost = cost_model(graph, phone, calibrations=tmp_path)
    estimate = cost_model(graph, phone, basis="estimated", calibrations=tmp_path)
    assert (cost.basis, estimate.basis) == ("calibrated", "estimated")
    rng = np.random.default_rng(0)
    plans = np.array([sizes(graph), *(random_counts(graph, rng, 0.4) for _ in range(20))])
    ratio = cost.evaluate(plans).latency_ms / estimate.evaluate(plans).latency_ms
    assert ((ratio > 2.5) & (ratio < 5)).all()
    [note] = cost.notes
    assert "made with onnxruntime 1.0.0" in note
    assert cost_model(graph, phone, threads=2, calibrations=tmp_path).basis == "estimated"


def test_a_basis_that_is_not_to_be_had(phone: Device, graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(
        DeviceError, match="no calibration of 'raspberry-pi-5' for onnxruntime, 1 thread and float32"
    ):
        cost_model(graph, phone, basis="calibrated", calibrations=tmp_path)
    with pytest.raises(
        DeviceError, match="`basis` must be one of measured, calibrated, estimated, got 'guessed'"
    ):
        cost_model(graph, phone, basis="guessed")  # type: ignore[arg-type]


CONV = {
    "op": "plain_conv", "widths": {"n": 1, "ci": 3, "co": 8}, "us": 1,
    "statics": {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "spatial": [8, 8],
                "output": [8, 8], "activation": "Relu"},
}  # fmt: skip
POOL = {
    "op": "plain_pool", "widths": {"n": 1, "c": 3}, "us": 1,
    "statics": {"op": "MaxPool", "kernel": [2], "stride": [2], "padding": [0], "spatial": [8], "output": [4]},
}  # fmt: skip


def told_with(sample: Any, **statics: object) -> dict[str, list[object]]:
    return {"samples": [{**sample, "statics": {**sample["statics"], **statics}}] * 30}


def one(kind: str, **statics: object) -> dict[str, object]:
    return {
        "samples": [{"op": kind, "statics": statics, "widths": dict.fromkeys(OPS[kind][0], 4), "us": 1}] * 30
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"call_us": float("inf")}, "`call_us`: input should be a finite number"),
        ({"runtime": "../../evil"}, "`runtime`: input should be 'onnxruntime', "),
        ({"device": "../evil"}, "`device`: string should match"),
        (told_with(CONV, kernel=3), r"`samples.0.statics.kernel`: input should be a valid tuple"),
        (told_with(CONV, kernel=[]), r"`samples.0.statics.kernel`: tuple should have at least 1 item"),
        (told_with(CONV, kernel=[0, 3]), r"`samples.0.statics.kernel.0`: input should be greater than or equal to 1"),
        (told_with(CONV, padding=[-1, 0]), r"`samples.0.statics.padding.0`: input should be greater than or equal to 0"),
        (told_with(CONV, stride=[1, 1, 1]), "as many numbers as the image has axes, got 2 for `kernel`, 3 for `stride`"),
        (told_with(CONV, spatial=[8]), "as many numbers as the image has axes"),
        (told_with(CONV, activation=5), r"`samples.0.statics.activation`: input should be a valid string"),
        (told_with(CONV, activation="relu"), r"`samples.0.statics.activation`: 'relu' is no operator of ONNX"),
        (told_with(POOL, op="GlobalAveragePool"), "`op` of 'plain_pool' .* MaxPool or AveragePool, got 'GlobalAverage"),
        (one("rows", op="Relu"), "`op` of 'rows' in a calibration must be Softmax or "),
        (one("elementwise", op=3, inputs=1), r"`samples.0.statics.op`: input should be a valid string"),
        (one("elementwise", op="relu", inputs=1), r"`samples.0.statics.op`: 'relu' is no operator of ONNX"),
        (one("elementwise", op="", inputs=1), r"`samples.0.statics.op`: value should have at least 1 item"),
        (one("elementwise", op="Relu", inputs="one"), r"`samples.0.statics.inputs`: input should be a valid integer"),
        (one("concat", inputs=0), r"`samples.0.statics.inputs`: input should be greater than or equal to 1"),
        (one("norm", inner=[8, 8]), r"`samples.0.statics.inner`: input should be a valid integer"),
        (told_with({**CONV, "op": "plain_depthwise", "widths": {"n": 1, "c": 4}}, multiplier="x"), "statics.multiplier`"),
        ({"cold": {**COLD, "byte_us": {"window": [0, float("inf")]}}}, r"`cold.byte_us.window.1`: .* finite number"),
        ({"cold": {**COLD, "age_us": [3, 9], "aged": [2, 1]}}, "`aged` must not fall"),
        ({"fit": {"samples": -5, "within_10": 0, "within_20": 0, "median_error": 0}}, r"`fit.samples`"),
        ({"format": "other"}, "`format`: input should be 'sned-calibration'"),
        ({"version": 1}, "`version`: input should be 3, got 1. The format .* another version has to be made again"),
        ({"call_us": -1}, "`call_us`: input should be greater than or equal to 0, got -1. The format is in .*md.$"),
        ({"samples": []}, "`samples`: tuple should have at least 30 items"),
        ({"extra": 1}, "`extra`: extra inputs are not permitted"),
        ({"samples": [{"op": "gem", "widths": {}, "us": 1}] * 30}, "got 'gem'. Did you mean 'gemm'"),
        ({"samples": [{"op": "gemm", "widths": {"m": 1, "k": 2}, "us": 1}] * 30}, "must be m, k, n, got m, k"),
        ({"samples": [{"op": "gemm", "widths": {"m": 1, "k": 2, "n": 0}, "us": 1}] * 30}, "greater than or equal to 1"),
        ({"samples": [{"op": "gemm", "widths": {"m": 1, "k": 2, "n": 3}, "us": 0}] * 30}, "greater than 0"),
        ({"cold": {**COLD, "byte_us": {"rows": [0, 0]}}}, "`cold`: .*must have numbers for `window`"),
        ({"cold": {**COLD, "byte_us": {"window": [0]}}}, "`byte_us.window` must have .*, got 1 for 2"),
        ({"cold": {**COLD, "footprint_bytes": [4e6, 1e6]}}, "`footprint_bytes` must rise"),
        ({"cold": {**COLD, "byte_us": {"window": [2, 0]}}}, "`byte_us.window` must not fall"),
    ],
)  # fmt: skip
def test_files_that_are_no_calibration(phone: Device, change: dict[str, object], text: str) -> None:
    held = json.loads(made_up(phone, count=60).model_dump_json())
    with pytest.raises(DeviceError, match=text):
        parse_calibration({**held, **change}, origin="phone.json")


def test_samples_of_any_number_of_axes_and_of_every_operator() -> None:
    for sample in (CONV, POOL):
        parsed = Sample.model_validate(sample)
        assert dict(parsed.timed().shape.family.statics)["kernel"] == tuple(sample["statics"]["kernel"])  # type: ignore[index]
    for op in ("Relu", "QuickGelu", "Where", "Add"):
        held = {"op": "elementwise", "statics": {"op": op, "inputs": 2}, "widths": {"elements": 4}, "us": 1}
        assert Sample.model_validate(held).statics.op == op


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "pixel-9"}, "of the device that is asked for, 'raspberry-pi-5', got one of 'pixel-9'"),
        (
            {"runtime": "coreml"},
            r"of a runtime that 'raspberry-pi-5' has \(onnxruntime, .*\), got one of coreml",
        ),
        ({"threads": 64}, "no more threads than the 4 cores of 'raspberry-pi-5', got one of 64 threads"),
    ],
)
def test_calibrations_of_what_a_device_is_not(phone: Device, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        belonging(made_up(phone, count=60).model_copy(update=changes), phone)


@pytest.mark.parametrize(("factor", "text"), [(1e-3, "0.003"), (1e3, r"3.*e\+03")])
def test_times_in_another_unit_are_refused(phone: Device, factor: float, text: str) -> None:
    """In milliseconds and nanoseconds; the made-up times are three times and more what the profile says."""
    made = made_up(phone, count=60)
    other = [sample.model_copy(update={"us": sample.us * factor}) for sample in made.samples]
    assert belonging(made, phone) == made
    with pytest.raises(
        DeviceError, match=rf"must be microseconds, .* 'raspberry-pi-5' are {text}\d* times what its"
    ):
        belonging(made.model_copy(update={"samples": tuple(other)}), phone)


def test_a_calibration_of_another_computer_is_not_of_this_machine(
    phone: Device, graph: Graph, tmp_path: Path
) -> None:
    """What a computer says of itself, read in elsewhere: it is of the device that is named, never of the host there."""
    host = find_device("host")
    here, elsewhere = (
        made_up(host, count=60, processor=name, yardstick_us=50.0)
        for name in (environment(1).processor, "Another CPU 9000")
    )
    assert belonging(here, host) == here
    assert belonging(elsewhere, phone) == elsewhere.model_copy(update={"device": phone.name})
    with pytest.raises(
        DeviceError, match=r"must be of this machine \(.*\), got one of another \(Another CPU 9000\)"
    ):
        belonging(elsewhere, host)
    save_calibration(elsewhere, tmp_path)
    with pytest.raises(DeviceError, match=r"got one of another \(Another CPU 9000\)"):
        cost_model(graph, host, basis="calibrated", calibrations=tmp_path)


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DeviceError, match="cannot be read"):
        read_calibration(path)


def test_the_documented_ops_are_those_that_are_understood() -> None:
    text = (Path(__file__).parents[2] / "docs" / "calibration-format.md").read_text(encoding="utf-8")
    assert [name for name in OPS if f"`{name}`" not in text] == []
    assert [name for name in Calibration.model_fields if f"`{name}`" not in text] == []


def few_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.devices.cold.FOOTPRINTS_MB", (0.3, 4.0))
    monkeypatch.setattr("sned.devices.cold.AGES", (2,))


def test_this_machine_is_calibrated_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.devices.calibrate.FIRST", 60)
    few_chains(monkeypatch)
    monkeypatch.setattr("sned.devices.calibrate.NOISY", 1.0)
    store = Store.open(environment(1), tmp_path)
    made = calibrate_host(seconds=1.0, store=store)
    assert len(made.samples) >= 50
    assert made.fit is not None
    assert made.device == "host"
    assert f"{made.runtime} {made.runtime_version}" == environment(1).runtime
    kept = len(store.yardsticks)
    again = calibrate_host(seconds=0.1, store=Store.open(environment(1), tmp_path))
    assert {(s.op, str(s.widths)) for s in again.samples} >= {
        (s.op, str(s.widths)) for s in made.samples[:10]
    }
    assert len(Store.open(environment(1), tmp_path).yardsticks) >= kept
    assert parse_calibration(json.loads(made.model_dump_json())) == made


def test_a_machine_that_is_slower_today_is_told_as_such(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = find_device("host")
    save_calibration(made_up(host, count=300, yardstick_us=50.0), tmp_path)
    latencies = []
    for now in (50.0, 75.0):
        monkeypatch.setattr("sned.devices.model.yardstick_us", lambda block, threads, now=now: now)
        cost = cost_model(graph, host, basis="calibrated", calibrations=tmp_path)
        latencies.append(float(cost.evaluate(sizes(graph)).latency_ms[0]))
    assert latencies[1] == pytest.approx(1.5 * latencies[0])


def test_those_that_took_longer_than_others_say_are_found(phone: Device) -> None:
    """A busy minute: every twentieth op takes a third longer, whatever its shape."""
    clean = [sample.timed() for sample in made_up(phone, count=2400).samples]
    busy = [place % 20 == 7 for place in range(len(clean))]
    samples = [
        replace(sample, microseconds=1.33 * sample.microseconds) if odd else sample
        for sample, odd in zip(clean, busy, strict=True)
    ]
    longer = excess(samples, Roofline(figures(phone)))
    worst = np.argsort(-longer)[: sum(busy)]
    assert np.mean([busy[place] for place in worst]) > 0.8
    assert np.median(longer[busy]) == pytest.approx(np.log(1.33), abs=0.05)
    assert np.median(np.abs(longer[~np.array(busy)])) < 0.02


def test_some_disturbed_samples_do_no_harm(phone: Device) -> None:
    """Other work on the machine only adds: three in a hundred take three times as long."""
    roofline = Roofline(figures(phone))
    clean = [sample.timed() for sample in made_up(phone, count=2400).samples]
    disturbed = [
        replace(sample, microseconds=3 * sample.microseconds) if place % 33 == 0 else sample
        for place, sample in enumerate(clean)
    ]
    fitted = fit(disturbed, roofline)
    gemms = [sample for sample in clean if sample.shape.family.recipe == "gemm"]
    error = [
        abs(np.log(float(fitted.op_us(s.shape.family, s.shape.columns)[0]) / s.microseconds)) for s in gemms
    ]
    assert np.percentile(error, 98) < 0.2


def test_a_machine_that_is_too_busy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.devices.calibrate.FIRST", 20)
    few_chains(monkeypatch)
    monkeypatch.setattr("sned.devices.calibrate.NOISY", -1.0)
    monkeypatch.setattr("sned.devices.timer.DISTURBED", -1.0)
    with pytest.raises(MeasureError, match=r"too busy to be calibrated: of .* close what else is running"):
        calibrate_host(seconds=0.5, store=Store.open(environment(1), tmp_path))


def test_calibrations_that_cannot_be() -> None:
    with pytest.raises(DeviceError, match=r"`threads` must lie between 1 and the \d+ cores"):
        calibrate_host(threads=4096)
    with pytest.raises(DeviceError, match="`seconds` must be above 0, got 0"):
        calibrate_host(seconds=0)
